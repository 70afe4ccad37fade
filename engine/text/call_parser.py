"""What parsers of tool calls share: marked text, events, and looking ahead in text that still grows."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

OPEN_TEXT, CLOSE_TEXT = "<tool_call>", "</tool_call>"
OPEN, CLOSE = "\ud800", "\ud801"
"""What stands for the delimiters' ids in marked text: lone surrogates, which decoded text cannot contain."""

SPACE = " \t\r\n"


@dataclass(frozen=True)
class TextPart:
    """Text of the answer outside of calls."""

    text: str


@dataclass(frozen=True)
class CallStart:
    """A call whose name is known. `index` counts the calls of one answer from 0."""

    index: int
    name: str


@dataclass(frozen=True)
class CallArguments:
    """The next piece of a call's arguments; all pieces of one call concatenate to one JSON object."""

    index: int
    fragment: str


@dataclass(frozen=True)
class CallEnd:
    """No more arguments follow. `complete` is False for a call that the answer broke off in."""

    index: int
    complete: bool = True


Event = TextPart | CallStart | CallArguments | CallEnd


class CallParser(ABC):
    """Reads marked text. `push` and `finish` return what the text so far decides; `calls` counts calls begun."""

    def __init__(self, schemas: Mapping[str, Mapping[str, Any]]) -> None:
        self.calls = 0
        self._schemas = schemas
        self._buffer = ""
        self._events: list[Event] = []

    def push(self, marked: str) -> list[Event]:
        self._buffer += marked
        return self._run(final=False)

    def finish(self) -> list[Event]:
        """What was held back, now that nothing follows; a call that is open ends with what is complete of it."""
        return self._run(final=True)

    @abstractmethod
    def _advance(self, final: bool) -> bool:
        """Consume from the front of the buffer; False when it takes more text to decide anything."""

    def _run(self, final: bool) -> list[Event]:
        while self._advance(final):
            pass
        events, self._events = self._events, []
        return events

    def _take(self, end: int) -> str:
        taken, self._buffer = self._buffer[:end], self._buffer[end:]
        return taken

    def _emit_text(self, marked: str) -> None:
        if marked:
            self._events.append(TextPart(unmark(marked)))

    def _emit_arguments(self, fragment: str) -> None:
        """Pieces of the call begun last that become known together are one event."""
        last = self._events[-1] if self._events else None
        if isinstance(last, CallArguments):
            fragment = last.fragment + fragment
            self._events.pop()
        if fragment:
            self._events.append(CallArguments(self.calls - 1, fragment))


def unmark(marked: str) -> str:
    """Marked text as the model wrote it."""
    return marked.replace(OPEN, OPEN_TEXT).replace(CLOSE, CLOSE_TEXT)


def find_ahead(text: str, at: int, words: Sequence[str], final: bool) -> str | None:
    """The one of `words` that stands at `at`, "" when none does, None while the text ends too early to tell."""
    for word in words:
        if text.startswith(word, at):
            return word
    rest = text[at : at + max(map(len, words))]
    undecided = not final and any(word.startswith(rest) for word in words)
    return None if undecided else ""


def skip_space(text: str, at: int) -> int:
    """The first position from `at` on without white space."""
    while at < len(text) and text[at] in SPACE:
        at += 1
    return at


def find_undecided(text: str, words: Sequence[str]) -> int:
    """Where the end of `text` begins that may still grow into one of `words`."""
    longest = max(map(len, words)) - 1
    for length in range(min(longest, len(text)), 0, -1):
        if any(word.startswith(text[-length:]) for word in words):
            return len(text) - length
    return len(text)


def split_undecided(text: str, words: Sequence[str]) -> int:
    """`find_undecided`, white space before it included."""
    return len(text[: find_undecided(text, words)].rstrip(SPACE))
