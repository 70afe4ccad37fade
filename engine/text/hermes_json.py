"""Hermes tool calls: one JSON object `{"name": ..., "arguments": {...}}` between the delimiters."""

import json
import re
from collections.abc import Mapping
from typing import Any

from engine.text.argument_types import dump
from engine.text.call_parser import (
    CLOSE,
    OPEN,
    SPACE,
    CallArguments,
    CallEnd,
    CallParser,
    CallStart,
    split_undecided,
    unmark,
)

STRING_OR_MARK = re.compile(rf'"(?:[^"\\]|\\.)*(?:"|\\?\Z)|[{OPEN}{CLOSE}]', re.DOTALL)
NAME = re.compile(r'"name"\s*:\s*(?=")')
MEMBER, COLON, END_OF_MEMBER = re.compile(r'[\s,]*(?=")'), re.compile(r"\s*:\s*"), re.compile(r"\s*[,}]")
DECODER = json.JSONDecoder(strict=False)
"""Not strict: a model may leave a newline in a string as it is."""
ARGUMENTS = re.compile(r'"arguments"\s*:\s*\{')


class HermesParser(CallParser):
    """Emits each call at once when its object has ended; a delimiter's id inside of a JSON string is text."""

    def __init__(self, schemas: Mapping[str, Mapping[str, Any]]) -> None:
        super().__init__(schemas)
        self._inside = False

    def _advance(self, final: bool) -> bool:
        if not self._buffer:
            return False
        return self._read_call(final) if self._inside else self._read_text(final)

    def _read_text(self, final: bool) -> bool:
        start = self._buffer.find(OPEN)
        if start >= 0:
            # The white space before a call goes with it, unless it turns out to be none.
            self._emit_text(self._take(len(self._buffer[:start].rstrip(SPACE))))
            self._inside = True
            return True
        if final and self.calls and not self._buffer.strip(SPACE):
            self._buffer = ""
        self._emit_text(self._take(len(self._buffer) if final else split_undecided(self._buffer, (OPEN,))))
        return False

    def _read_call(self, final: bool) -> bool:
        """The buffer begins with white space and the opening mark."""
        start = self._buffer.index(OPEN) + 1
        end = self._end_of_object(start)
        if end is None and not final:
            return False
        self._inside = False
        is_call = self._emit_call(unmark(self._buffer[start:end]), complete=end is not None)
        read = self._take(len(self._buffer) if end is None else end + (self._buffer[end] == CLOSE))
        if not is_call:
            self._emit_text(read)
        return True

    def _end_of_object(self, start: int) -> int | None:
        """The first mark outside of a JSON string."""
        if CLOSE not in self._buffer and OPEN not in self._buffer[start:]:
            return None
        marks = (m.start() for m in STRING_OR_MARK.finditer(self._buffer, start) if m[0] in (OPEN, CLOSE))
        return next(marks, None)

    def _emit_call(self, body: str, *, complete: bool) -> bool:
        """Whether `body` names a call; of a malformed one the leading whole arguments are kept."""
        try:
            value = json.loads(body, strict=False)
        except (ValueError, RecursionError):
            return self._emit_partial(body)
        if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
            return False
        arguments = value.get("arguments", {})
        if isinstance(arguments, str):
            arguments = _object(arguments)
        if not isinstance(arguments, dict):
            return False
        self._emit(value["name"], arguments, complete=complete)
        return True

    def _emit_partial(self, body: str) -> bool:
        found = NAME.search(body)
        if found is None:
            return False
        try:
            name, _ = DECODER.raw_decode(body, found.end())
        except ValueError:
            return False
        start = ARGUMENTS.search(body)
        self._emit(name, _leading_members(body, start.end()) if start else {}, complete=False)
        return True

    def _emit(self, name: str, arguments: dict[str, Any], *, complete: bool) -> None:
        self._events += [
            CallStart(self.calls, name),
            CallArguments(self.calls, dump(arguments)),
            CallEnd(self.calls, complete),
        ]
        self.calls += 1


def _object(text: str) -> Any:
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return None


def _leading_members(text: str, at: int) -> dict[str, Any]:
    """The members of an object that are whole, from behind its brace up to where it breaks off."""
    members: dict[str, Any] = {}
    while (found := MEMBER.match(text, at)) is not None:
        try:
            key, at = DECODER.raw_decode(text, found.end())
            colon = COLON.match(text, at)
            if colon is None:
                break
            value, at = DECODER.raw_decode(text, colon.end())
        except (ValueError, RecursionError):
            break
        # A number that nothing follows may have lost digits.
        if not END_OF_MEMBER.match(text, at):
            break
        members[key] = value
    return members
