"""A judge behind HTTP that answers by rule: what judges do well, badly, or when a page talks to them."""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Rule = Callable[["Asked"], str | int]


@dataclass(frozen=True)
class Asked:
    """One request as the judge reads it: the fenced pages, the question, and the menu line of each option."""

    body: dict[str, Any]

    @property
    def text(self) -> str:
        content = self.body["messages"][1]["content"]
        return content if isinstance(content, str) else content[0]["text"]

    @property
    def fence(self) -> str:
        return re.search(r"two lines that read (=== \w+ ===)", self.body["messages"][0]["content"])[1]

    @property
    def pages(self) -> list[str]:
        """What stands between fences, in order."""
        return [part.strip() for part in self.text.split(self.fence)[1::2]]

    @property
    def question(self) -> str:
        return re.search(r"Question: (.*)", self.text)[1]

    @property
    def menu(self) -> dict[str, str]:
        """Option -> exact line, in the order shown."""
        tail = self.text.split(self.fence)[-1]
        return {found[1]: found[2] for found in re.finditer(r"if (?:the answer|it) is (?:the )?(\w+):\n(.+)", tail)}


def answer(choose: Callable[[Asked], str]) -> Rule:
    """A judge that reasons, then writes the line of what `choose` names."""
    return lambda asked: f"Some thoughts on the page.\n\n{asked.menu[choose(asked)]}"


@contextmanager
def serve_judge(rule: Rule, seconds: float = 0.0) -> Iterator[tuple[str, list[Asked]]]:
    """Base URL and the requests so far. A rule that gives a number answers with that status; `seconds` delays all."""
    requests: list[Asked] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_POST(self) -> None:
            asked = Asked(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            requests.append(asked)
            time.sleep(seconds)
            said = rule(asked)
            message = {"role": "assistant", "content": said}
            document = {"error": {"message": "broken"}} if isinstance(said, int) else {
                "id": "x", "object": "chat.completion", "created": 0, "model": asked.body["model"],
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
            }  # fmt: skip
            data = json.dumps(document).encode()
            with suppress(BrokenPipeError, ConnectionResetError):  # a client that did not wait
                self.send_response(said if isinstance(said, int) else 200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", requests
    finally:
        server.shutdown()
        server.server_close()
