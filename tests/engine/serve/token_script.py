"""An engine whose answers are given token by token, and a service over it with a chat template that has tools."""

import json
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serve_fixtures import Server, byte_tokenizer

from engine.core.request import Request, SamplingParams, StepOutput
from engine.core.text_stream import TextStream
from engine.serve.service import Service
from engine.text.chat import ChatTemplate
from engine.text.tokenizer import Tokenizer

TEMPLATES = Path(__file__).parents[1] / "templates"
PRINTABLE = [chr(b) for b in [*range(33, 127), *range(161, 173), *range(174, 256)]]
SPECIAL = ["<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>"]


def chat_tokenizer() -> Tokenizer:
    """One token per byte, the chat and call delimiters, and "ab", which a model may also write as two tokens."""
    plain = [*PRINTABLE, *[chr(256 + n) for n in range(256 - len(PRINTABLE))]]
    metadata = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": [*plain, *SPECIAL, "ab"],
        "token_type": [*[1] * 256, 3, 3, 4, 4, 1],
        "merges": ["a b"],
    }
    return Tokenizer.from_gguf({f"tokenizer.ggml.{key}": value for key, value in metadata.items()})


@dataclass
class _Choice:
    request: Request
    index: int
    ids: deque[int]
    text: TextStream
    cached: int
    done: list[int] = field(default_factory=list)


class TokenScriptEngine:
    """Answers the requests in turn with `scripts`, `stride` tokens a step, each followed by the stop token.

    `cached_tokens` is what an ideal prefix cache would hold: the longest prefix that the prompt shares with any earlier
    prompt and answer. `requests` are those that came.
    """

    def __init__(self, tokenizer: Tokenizer, stride: int = 1) -> None:
        self.scripts: deque[Sequence[int]] = deque()
        self.requests: list[Request] = []
        self.stride = stride
        self._tokenizer = tokenizer
        self._running: list[_Choice] = []
        self._seen: list[list[int]] = []

    @property
    def has_work(self) -> bool:
        return bool(self._running)

    def prepare(self, params: SamplingParams) -> None:
        params.check()

    def add(self, request: Request) -> None:
        self.requests.append(request)
        script = [*self.scripts.popleft(), *self._tokenizer.stop_ids]
        cached = max((_common(request.prompt_ids, seen) for seen in self._seen), default=0)
        for index in range(request.params.n):
            text = TextStream(self._tokenizer.detokenizer(), request.params.stop)
            self._running.append(_Choice(request, index, deque(script[: request.params.max_tokens]), text, cached))

    def abort(self, request_id: str) -> None:
        self._running = [choice for choice in self._running if choice.request.request_id != request_id]

    def end_session(self, session_id: str) -> None:
        raise AssertionError("no test ends a session here")

    def step(self) -> list[StepOutput]:
        return [self._advance(choice) for choice in list(self._running)]

    def stats(self) -> dict[str, Any]:
        return {"running": len(self._running)}

    def _advance(self, choice: _Choice) -> StepOutput:
        ids = [choice.ids.popleft() for _ in range(min(self.stride, len(choice.ids)))]
        choice.done += ids
        shown = [token for token in ids if token not in self._tokenizer.stop_ids]
        text = choice.text.push(shown)
        ended = len(shown) < len(ids) or choice.text.stopped
        reason = "stop" if ended else None if choice.ids else "length"
        if reason is not None:
            text += choice.text.finish()
            self._running.remove(choice)
            self._seen.append([*choice.request.prompt_ids, *choice.done])
        return StepOutput(
            request_id=choice.request.request_id,
            token_ids=tuple(ids),
            text=text,
            finish_reason=reason,  # type: ignore[arg-type]
            prompt_tokens=len(choice.request.prompt_ids),
            cached_tokens=choice.cached,
            cache_source="device" if choice.cached else None,
            index=choice.index,
            stop_string=choice.text.matched,
        )


def script_service(template: str = "qwen3_coder", stride: int = 1) -> Service:
    tokenizer = chat_tokenizer()
    source = (TEMPLATES / f"{template}.jinja").read_text() if template in ("qwen3_coder", "hermes") else template
    return Service(
        engine=TokenScriptEngine(tokenizer, stride),
        tokenizer=tokenizer,
        template=ChatTemplate(source, {}),
        name="script",
        model="script.gguf",
        max_context=20000,
        identity={"engine": "sweq-engine", "weights_bytes": 1, "quant": "f32"},
    )


def plain_service() -> Service:
    """A tokenizer without the delimiters under a template that writes them."""
    source = (TEMPLATES / "hermes.jinja").read_text()
    service = script_service()
    return Service(
        engine=service.engine,
        tokenizer=byte_tokenizer(),
        template=ChatTemplate(source, {}),
        name="plain",
        model="plain.gguf",
        max_context=20000,
        identity=service.identity,
    )


def xml(name: str, **arguments: str) -> str:
    """A call as a qwen3_coder model writes it."""
    parameters = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in arguments.items())
    return f"<tool_call>\n<function={name}>\n{parameters}</function>\n</tool_call>"


def hermes(name: str, **arguments: Any) -> str:
    """A call as a hermes model writes it."""
    return f'<tool_call>\n{{"name": "{name}", "arguments": {json.dumps(arguments)}}}\n</tool_call>'


def engine_of(server: Server) -> TokenScriptEngine:
    assert server.session.service is not None
    assert isinstance(server.session.service.engine, TokenScriptEngine)
    return server.session.service.engine


def will_write(server: Server, *answers: str | list[int]) -> None:
    """Let the engine answer the next requests with these texts or ids."""
    assert server.session.service is not None
    tokenizer = server.session.service.tokenizer
    ids = [tokenizer.encode(answer) if isinstance(answer, str) else answer for answer in answers]
    engine_of(server).scripts.extend(ids)


def _common(one: Iterable[int], other: Iterable[int]) -> int:
    count = 0
    for left, right in zip(one, other, strict=False):
        if left != right:
            break
        count += 1
    return count
