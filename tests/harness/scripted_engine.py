"""A stand-in for `sweq-engine` whose model is a JSON file: `{"replies": {text in the task: [answers]}, ...}`.

Answer number N goes to a conversation with N answers since the task; further ones repeat the last. Other keys:
`refuse` (end with status 2 and this line), `crash` (end with status 3 and this line), `silent` (never become ready),
`seconds` (time per answer).
"""

import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


def option(name: str) -> str:
    """Value of a command-line option."""
    return sys.argv[sys.argv.index(name) + 1]


def find_replies(replies: dict[str, list[str]], messages: list[dict[str, str]]) -> tuple[int, list[str]]:
    """How many answers followed the message that a text of `replies` occurs in, and the answers for that text."""
    for position, message in enumerate(messages):
        for text, answers in replies.items():
            if message["role"] == "user" and text in message["content"]:
                return sum(later["role"] == "assistant" for later in messages[position:]), answers
    return 0, ["```bash\nsubmit\n```"]


def make_handler(script: dict[str, Any]) -> type[BaseHTTPRequestHandler]:
    """Request handler that answers by `script`."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            bodies = {
                "/health": {"status": "ok"},
                "/version": {
                    "weights_bytes": 1000,
                    "weights_sha256": "ab",
                    "max_context": 8192,
                    "supports_tools": False,
                }
                | {"pid": os.getpid()},
                "/v1/models": {"object": "list", "data": [{"id": "scripted", "object": "model"}]},
            }
            self.reply(bodies[self.path])

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            time.sleep(script.get("seconds", 0.0))
            turn, replies = find_replies(script.get("replies", {}), body["messages"])
            message = {"role": "assistant", "content": replies[min(turn, len(replies) - 1)]}
            self.reply(
                {
                    "id": "x",
                    "object": "chat.completion",
                    "created": 0,
                    "model": "scripted",
                    "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                    "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
                }
            )

        def reply(self, body: dict[str, Any]) -> None:
            data = json.dumps(body).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    return Handler


def main() -> int:
    """Serve, or print a perplexity."""
    file = Path(option("--model"))
    script = json.loads(file.read_text())
    if "refuse" in script:
        print(script["refuse"], file=sys.stderr)
        return 2
    if "crash" in script:
        print(f"loading\n{script['crash']}", file=sys.stderr)
        return 3
    if sys.argv[1] == "perplexity":
        divergence = {"kld_mean": 0.01, "kld_p99": 0.2, "top1": 0.9} if "--reference" in sys.argv else {}
        print(json.dumps({"ppl": 12.5, "level": option("--quant"), **divergence}))
        return 0
    while script.get("silent"):
        time.sleep(1)
    server = ThreadingHTTPServer((option("--host"), int(option("--port"))), make_handler(script))
    server.daemon_threads = True
    server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
