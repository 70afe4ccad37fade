"""What one server serves: an engine, its tokenizer and template, and the identity that run records keep."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from engine.core.request import Request, SamplingParams, StepOutput
from engine.errors import RequestError
from engine.text.chat import ChatTemplate
from engine.text.tokenizer import Tokenizer


class StepEngine(Protocol):
    """What serving needs of the engine; every method but `prepare` is called on the session's thread alone."""

    @property
    def has_work(self) -> bool: ...

    def prepare(self, params: SamplingParams) -> None:
        """Do the slow part of `add` for `params` on any thread; RequestError for what `add` would refuse."""

    def add(self, request: Request) -> None: ...

    def abort(self, request_id: str) -> None: ...

    def end_session(self, session_id: str) -> int: ...

    def step(self) -> list[StepOutput]: ...

    def stats(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Service:
    """A loaded model, ready to be served.

    `name` is what `/v1/models` lists; `model` names the file or directory in errors; `max_context` counts prompt and
    completion tokens together; `identity` is the body of `/version`.
    """

    engine: StepEngine
    tokenizer: Tokenizer
    template: ChatTemplate | None
    name: str
    model: str
    max_context: int
    identity: Mapping[str, Any]

    def chat_template(self) -> ChatTemplate:
        """The chat template; RequestError naming the model when the checkpoint has none."""
        if self.template is None:
            raise RequestError(f"{self.model} has no chat template; use /v1/completions", param="messages")
        return self.template
