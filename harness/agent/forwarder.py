"""A chat endpoint inside the sandbox, for agents that bring their own client: `/v1/chat/completions` and `/v1/models`.

It listens on the sandbox's own loopback device, and the harness answers: the sandbox sees neither the real server nor
its key. What decides the answer beside the conversation (model, sampling, seed) is the run's, whatever the agent asks.
"""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from harness.agent.model import Message, Reply

STOP_PATH = "/stop"
"""Answered when the agent's time is over: what watches the agent inside asks this, and then ends it."""

_BODY_LIMIT = 64 << 20
_HANDLED = frozenset({"messages", "tools", "tool_choice", "stream", "stream_options", "max_tokens"})


@dataclass(frozen=True)
class ChatRequest:
    """What an agent asked. `overridden` are the names of its fields that have no say."""

    messages: list[Message]
    tools: list[Message] | None
    max_tokens: int | None
    overridden: list[str] = field(default_factory=list)


class RefusedError(Exception):
    """A request that gets an error for an answer: HTTP status, OpenAI's `code`, and words."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class Forwarder(ThreadingHTTPServer):
    """Serves `ask` on `listener`, which it owns. `ask` is called from many threads and may raise `RefusedError`."""

    daemon_threads = True

    def __init__(self, listener: socket.socket, model_name: str, ask: Callable[[ChatRequest], Reply]) -> None:
        super().__init__(listener.getsockname(), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.model_name = model_name
        self.ask = ask
        self.stopped = threading.Event()
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)

    def __enter__(self) -> "Forwarder":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self.shutdown()
        self.server_close()
        self._thread.join()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that the agent broke is its own affair."""


class _Handler(BaseHTTPRequestHandler):
    server: Forwarder

    def log_message(self, *_: object) -> None:
        """Nothing is logged: every answered request is in the trajectory."""

    def do_GET(self) -> None:
        if self.path == STOP_PATH:
            self.server.stopped.wait()
            self._send(200, b"stop\n")
        elif self.path.rstrip("/").endswith("/models"):
            card = {"id": self.server.model_name, "object": "model", "created": 0, "owned_by": "sweq"}
            self._send_json(200, {"object": "list", "data": [card]})
        else:
            self._refuse(RefusedError(404, "not_found", f"there is no {self.path} here"))

    def do_POST(self) -> None:
        try:
            body = self._read()
            reply = self.server.ask(read_request(body))
        except RefusedError as error:
            self._refuse(error)
            return
        completion = to_completion(reply, self.server.model_name)
        if body.get("stream"):
            self._send(200, b"".join(to_events(completion)), "text/event-stream")
        else:
            self._send_json(200, completion)

    def _read(self) -> dict[str, Any]:
        size = self.headers.get("Content-Length", "")
        if not size.isdigit() or int(size) > _BODY_LIMIT:
            raise RefusedError(413, "too_large", f"a request needs a Content-Length of at most {_BODY_LIMIT} bytes")
        data = self.rfile.read(int(size))
        if not self.path.split("?")[0].endswith("/chat/completions"):
            raise RefusedError(404, "not_found", "only /v1/chat/completions and /v1/models are served here")
        try:
            body = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise RefusedError(400, "invalid_json", f"the body is no JSON: {error}") from error
        if not isinstance(body, dict):
            raise RefusedError(400, "invalid_json", "the body is no JSON object")
        return body

    def _refuse(self, error: RefusedError) -> None:
        content = {"message": error.message, "type": "invalid_request_error", "param": None, "code": error.code}
        self._send_json(error.status, {"error": content})

    def _send_json(self, status: int, content: dict[str, Any]) -> None:
        self._send(status, json.dumps(content).encode())

    def _send(self, status: int, data: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def read_request(body: dict[str, Any]) -> ChatRequest:
    """The request in `body`; raises `RefusedError` for what would change the answer and cannot be done here."""
    messages, tools = body.get("messages"), body.get("tools") or None
    if not isinstance(messages, list) or not messages or not all(isinstance(one, dict) for one in messages):
        raise RefusedError(400, "invalid_messages", "messages must be a list of at least one message")
    if tools is not None and not (isinstance(tools, list) and all(isinstance(one, dict) for one in tools)):
        raise RefusedError(400, "invalid_tools", "tools must be a list of tools")
    for name, usual in (("tool_choice", "auto"), ("n", 1), ("stop", []), ("response_format", {"type": "text"})):
        if body.get(name) not in (None, usual):
            raise RefusedError(400, "unsupported", f"{name} must be {usual!r} or left out")
    room = body.get("max_tokens", body.get("max_completion_tokens"))
    if room is not None and (type(room) is not int or room < 1):
        raise RefusedError(400, "invalid_max_tokens", "max_tokens must be a positive integer")
    return ChatRequest(messages, tools, room, sorted(set(body) - _HANDLED))


def to_completion(reply: Reply, model: str) -> dict[str, Any]:
    """`reply` as OpenAI's chat completion object."""
    usage = reply.usage
    return {
        "id": "chatcmpl-sweq",
        "object": "chat.completion",
        "created": 0,
        "model": model,
        "choices": [{"index": 0, "message": reply.raw_message, "finish_reason": reply.finish_reason, "logprobs": None}],
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.total,
            "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        },
    }


def to_events(completion: dict[str, Any]) -> Iterator[bytes]:
    """`completion` as a stream of server-sent events: the whole message, its end, the usage."""
    (choice,) = completion["choices"]
    delta = dict(choice["message"])
    if "tool_calls" in delta:
        delta["tool_calls"] = [{"index": number, **call} for number, call in enumerate(delta["tool_calls"])]
    common = {name: completion[name] for name in ("id", "created", "model")} | {"object": "chat.completion.chunk"}
    for chunk in (
        {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": choice["finish_reason"]}]},
        {"choices": [], "usage": completion["usage"]},
    ):
        yield f"data: {json.dumps(common | chunk)}\n\n".encode()
    yield b"data: [DONE]\n\n"
