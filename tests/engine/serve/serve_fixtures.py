"""A real server on a loopback port, in a thread, over a real or a scripted engine."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
from openai import OpenAI

from engine.core.request import Request, SamplingParams, StepOutput, TokenLogprob
from engine.errors import UserError
from engine.serve.app import DrainingServer, bind, build_app
from engine.serve.service import Service
from engine.serve.session import Session
from engine.text.chat import ChatTemplate
from engine.text.tokenizer import Detokenizer, Tokenizer

REPLY = "héllo 🙂 world, "
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
_PRINTABLE = [chr(b) for b in [*range(33, 127), *range(161, 173), *range(174, 256)]]


def byte_tokenizer() -> Tokenizer:
    """One token per byte; a character outside ASCII is several tokens."""
    return Tokenizer.from_gguf(
        {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "gpt-2",
            "tokenizer.ggml.tokens": [*_PRINTABLE, *[chr(256 + n) for n in range(256 - len(_PRINTABLE))]],
            "tokenizer.ggml.merges": [],
        }
    )


@dataclass
class _Running:
    request: Request
    ids: list[int]
    text: Detokenizer
    done: int = 0


class ScriptedEngine:
    """Answers every request with `reply`, repeated up to `max_tokens`, one token a step for every running request.

    A prompt that holds "refuse" is rejected by `add`; one that holds "explode" makes the next step raise. `gate` unset
    holds the steps back.
    """

    def __init__(self, tokenizer: Tokenizer, reply: str) -> None:
        self.steps = 0
        self.sessions: list[str | None] = []
        self.ended: list[str] = []
        self.gate = threading.Event()
        self.gate.set()
        self._tokenizer = tokenizer
        self._reply = tokenizer.encode(reply)
        self._running: dict[str, _Running] = {}

    @property
    def has_work(self) -> bool:
        return bool(self._running)

    def prepare(self, params: SamplingParams) -> None:
        params.check()

    def add(self, request: Request) -> None:
        if "refuse" in self._tokenizer.decode(request.prompt_ids):
            raise UserError("the prompt does not fit the cache")
        self.sessions.append(request.session_id)
        wanted = request.params.max_tokens
        ids = (self._reply * (wanted // len(self._reply) + 1))[:wanted]
        self._running[request.request_id] = _Running(request, ids, self._tokenizer.detokenizer())

    def abort(self, request_id: str) -> None:
        self._running.pop(request_id, None)

    def end_session(self, session_id: str) -> int:
        self.ended.append(session_id)
        return 0

    def step(self) -> list[StepOutput]:
        self.gate.wait(10)
        self.steps += 1
        return [self._advance(running) for running in list(self._running.values())]

    def stats(self) -> dict[str, Any]:
        return {"running": len(self._running), "waiting": 0, "prefix_hit_tokens": 7}

    def _advance(self, running: _Running) -> StepOutput:
        if "explode" in self._tokenizer.decode(running.request.prompt_ids):
            raise RuntimeError("boom")
        token = running.ids[running.done]
        running.done += 1
        last = running.done == len(running.ids)
        if last:
            del self._running[running.request.request_id]
        alternatives = running.request.params.logprobs
        top = tuple((token, -0.5) for _ in range(alternatives or 0))
        return StepOutput(
            request_id=running.request.request_id,
            token_ids=(token,),
            text=running.text.push([token]) + (running.text.flush() if last else ""),
            finish_reason="length" if last else None,
            prompt_tokens=len(running.request.prompt_ids),
            cached_tokens=3,
            logprobs=() if alternatives is None else (TokenLogprob(token, -0.5, top),),
        )


def scripted_service(
    reply: str = "héllo 🙂 world, ", template: str | None = TEMPLATE, max_context: int = 200
) -> Service:
    tokenizer = byte_tokenizer()
    return Service(
        engine=ScriptedEngine(tokenizer, REPLY),
        tokenizer=tokenizer,
        template=None if template is None else ChatTemplate(template, {}),
        name="scripted",
        model="scripted.gguf",
        max_context=max_context,
        identity={"engine": "sweq-engine", "weights_bytes": 1, "quant": "f32"},
    )


@dataclass
class Server:
    """A server that runs; `url` ends before `/v1`."""

    url: str
    session: Session
    app_server: DrainingServer

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.url.removeprefix("http://").split(":")
        return host, int(port)

    def client(self, key: str = "none") -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60)

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        return httpx.post(f"{self.url}{path}", json=body, timeout=60, **options)

    def wait_until(self, condition: Callable[[], bool], seconds: float = 20) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "the condition did not come true in time"
            time.sleep(0.005)


@contextlib.contextmanager
def running_server(
    open_service: Callable[[], Service], api_keys: Sequence[str] = (), drain_seconds: float = 5, **limits: Any
) -> Iterator[Server]:
    listener = bind("127.0.0.1", 0)
    session = Session(open_service)
    app_server = DrainingServer(build_app(session, api_keys, **limits), session, drain_seconds=drain_seconds)
    thread = threading.Thread(target=app_server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    server = Server(f"http://127.0.0.1:{listener.getsockname()[1]}", session, app_server)
    try:
        server.wait_until(lambda: app_server.started, 30)
        yield server
    finally:
        app_server.should_exit = True
        thread.join(30)
    assert not thread.is_alive()
