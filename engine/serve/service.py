"""What one server serves: an engine, its tokenizer and template, and the identity that run records keep."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from engine.core.request import Request, SamplingParams, StepOutput
from engine.errors import LostRankError, RequestError, UserError
from engine.text.chat import ChatTemplate
from engine.text.history import TurnHistory
from engine.text.tokenizer import Tokenizer
from engine.text.tool_calls import ToolSyntax, find_syntax


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


class Watched(Protocol):
    """Processes without which the engine cannot go on."""

    def when_lost(self, listener: Callable[[LostRankError], None]) -> None:
        """Have `listener` called, on some thread, when one has ended."""

    def close(self) -> None:
        """End them."""


@dataclass(frozen=True)
class Service:
    """A loaded model, ready to be served.

    `name` is what `/v1/models` lists; `model` names the file or directory in errors; `max_context` counts prompt and
    completion tokens together; `identity` is the body of `/version`; `history` remembers answers for replay.
    `ranks` are the processes that the model runs in beside this one, if any.
    """

    engine: StepEngine
    tokenizer: Tokenizer
    template: ChatTemplate | None
    name: str
    model: str
    max_context: int
    identity: Mapping[str, Any]
    history: TurnHistory = field(default_factory=TurnHistory)
    ranks: Watched | None = None

    @property
    def most_tokens(self) -> int:
        """Longer texts are not tokenized to their end: far more than fits, so that clients can still count too much."""
        return 4 * self.max_context

    def chat_template(self) -> ChatTemplate:
        """The chat template; RequestError naming the model when the checkpoint has none."""
        if self.template is None:
            raise RequestError(f"{self.model} has no chat template; use /v1/completions", param="messages")
        return self.template

    def tool_syntax(self) -> ToolSyntax:
        """How the model writes tool calls; RequestError that says why it cannot."""
        template = self.chat_template()
        if not template.supports_tools:
            raise _no_tools("its chat template has no tools")
        try:
            return find_syntax(template.source, self.tokenizer)
        except UserError as error:
            raise _no_tools(str(error)) from error


def _no_tools(reason: str) -> RequestError:
    return RequestError(f"tools: this model cannot call them: {reason}", param="tools")
