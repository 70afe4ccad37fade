"""The real HTTP stack over an engine that writes given answers: what real clients are run against."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "engine" / "serve"))

from serve_fixtures import Server, running_server
from token_script import TEMPLATES, TokenScriptEngine, script_service

from engine.core.request import Request
from engine.serve.service import Service
from engine.text.tokenizer import Tokenizer

__all__ = ["TEMPLATES", "ForcedEngine", "forced_server", "running_server"]

MAX_CONTEXT = 1 << 20
"""Every byte is a token here, and agents' prompts are long."""


class ForcedEngine(TokenScriptEngine):
    """Writes what `answer` says to a prompt's text, however many requests a client makes and in whatever order."""

    def __init__(self, tokenizer: Tokenizer, answer: Callable[[str], str]) -> None:
        super().__init__(tokenizer, stride=16)
        self._answer = answer
        self._texts: list[str] = []

    def add(self, request: Request) -> None:
        """Queue the answer, then as the engine below does."""
        text = self._answer(self._tokenizer.decode(list(request.prompt_ids)))
        self.scripts.append(self._tokenizer.encode(text))
        self._texts.append(text)
        super().add(request)

    def whole_turn(self, at: int) -> list[int]:
        """Prompt and answer of the request that came as number `at`."""
        return [*self.requests[at].prompt_ids, *self._tokenizer.encode(self._texts[at])]


@contextlib.contextmanager
def forced_server(answer: Callable[[str], str]) -> Iterator[Server]:
    """A server whose answers `answer` makes from the rendered prompt."""

    def open_service() -> Service:
        service = script_service()
        return replace(service, engine=ForcedEngine(service.tokenizer, answer), max_context=MAX_CONTEXT)

    with running_server(open_service) as server:
        server.wait_until(lambda: server.session.state == "ready")
        yield server
