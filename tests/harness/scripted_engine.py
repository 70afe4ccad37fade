"""A stand-in for `sweq-engine` whose model is a JSON file: `{"replies": {text in the task: [answers]}, ...}`.

Answer number N goes to a conversation with N earlier answers; further ones repeat the last. Other keys of the file:
`refuse` (end with status 2 and this line), `crash` (end with status 3), `silent` (never become ready), `die_after`
(end without a word after so many answers, once per marker file `died`), `identity` (added to /version).
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


def make_handler(script: dict[str, Any], file: Path) -> type[BaseHTTPRequestHandler]:
    """Request handler that answers by `script`."""
    answered = []

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
                | {"pid": os.getpid()}
                | script.get("identity", {}),
                "/v1/models": {"object": "list", "data": [{"id": "scripted", "object": "model"}]},
            }
            self.reply(bodies[self.path])

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            answered.append(1)
            if len(answered) > script.get("die_after", 1 << 30) and not (file.parent / "died").exists():
                (file.parent / "died").touch()
                os._exit(1)
            time.sleep(script.get("seconds", 0.0))
            messages = body["messages"]
            task = messages[1]["content"]
            replies = next(
                (r for text, r in script.get("replies", {}).items() if text in task), ["```bash\nsubmit\n```"]
            )
            turn = sum(message["role"] == "assistant" for message in messages)
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
        print(json.dumps({"ppl": 12.5, "level": option("--quant")}))
        return 0
    while script.get("silent"):
        time.sleep(1)
    server = ThreadingHTTPServer((option("--host"), int(option("--port"))), make_handler(script, file))
    server.daemon_threads = True
    server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
