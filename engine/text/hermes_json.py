"""Hermes tool calls: one JSON object `{"name": ..., "arguments": {...}}` between the delimiters.

With the name first, as the format has it, a call goes out as it comes: strings among its arguments character by
character, other values when they are whole. An object written otherwise goes out when it has ended. A delimiter's id
inside of a JSON string is text. Slips that are understood: line ends in strings, backslashes that begin no escape,
commas too many, and arguments as a JSON string.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from engine.text.argument_types import dump, parse_json
from engine.text.call_parser import (
    CLOSE,
    OPEN,
    SPACE,
    CallEnd,
    CallParser,
    CallStart,
    split_undecided,
    unmark,
)

STRING_OR_MARK = re.compile(rf'"(?:[^"\\]|\\.)*(?:"|\\?\Z)|[{OPEN}{CLOSE}]', re.DOTALL)
STRING = rf'"(?:[^"\\{OPEN}{CLOSE}]|\\[^{OPEN}{CLOSE}])*"'
OTHER_MEMBER = rf'(?!"name"|"arguments"){STRING}\s*:\s*(?:{STRING}|[^\s,"{{}}\[\]{OPEN}{CLOSE}]+)\s*,\s*'
HEADER = re.compile(
    rf'\s*{OPEN}\s*\{{\s*(?:{OTHER_MEMBER})*"name"\s*:\s*(?P<name>{STRING})\s*,\s*"arguments"\s*:\s*\{{', re.DOTALL
)
KEY = re.compile(r'[\s,]*(?P<key>"(?:[^"\\]|\\.)*")\s*:\s*(?=\S)', re.DOTALL)
END_OF_OBJECT, END_OF_MEMBER = re.compile(r"[\s,]*\}"), re.compile(r"\s*[,}]")
NAME = re.compile(rf'"name"\s*:\s*(?P<name>{STRING})', re.DOTALL)
HEX = "[0-9a-fA-F]"
PIECE = re.compile(rf'[^"\\]+|\\u{HEX}{{4}}|\\u(?={HEX}{{0,3}}[^0-9a-fA-F])|\\[^u]', re.DOTALL)
ESCAPE = re.compile(rf'\\(?:["\\/bfnrt]|u{HEX}{{4}})')
FIRST_OF_PAIR = re.compile(rf"\\u[dD][89abAB]{HEX}{{2}}")
"""Half of a character, as JSON escapes those beyond 16 bits."""

DECODER = json.JSONDecoder(strict=False)
"""Not strict: a model may leave a newline in a string as it is."""


@dataclass
class _Arguments:
    """The arguments being read. `text` is the string that the front of the buffer is inside of; `ended`: no member
    follows, and `whole`: because the object ended."""

    given: set[str] = field(default_factory=set)
    text: "_Text | None" = None
    ended: bool = False
    whole: bool = False


@dataclass
class _Text:
    """A string among the arguments. `sent`: its beginning went out."""

    key: str
    sent: bool = False


class HermesParser(CallParser):
    """Emits a call's name when its arguments begin."""

    def __init__(self, schemas: Mapping[str, Mapping[str, Any]]) -> None:
        super().__init__(schemas)
        self._inside = False
        self._arguments: _Arguments | None = None

    def _advance(self, final: bool) -> bool:
        if self._arguments is not None:
            return self._read_arguments(self._arguments, final)
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
        header = HEADER.match(self._buffer)
        name = header and _parse(header["name"])
        if header and isinstance(name, str):
            self._begin_call(name)
            self._take(header.end())
            self._arguments, self._inside = _Arguments(), False
            return True
        start = self._buffer.index(OPEN) + 1
        end = self._end_of_call(start)
        if end is None and not final:
            return False
        self._inside = False
        is_call = self._emit_call(unmark(self._buffer[start:end]), complete=end is not None)
        read = self._take_call(end)
        if not is_call:
            self._emit_text(read)
        return True

    def _end_of_call(self, start: int) -> int | None:
        """The first mark outside of a JSON string."""
        if CLOSE not in self._buffer and OPEN not in self._buffer[start:]:
            return None
        marks = (m.start() for m in STRING_OR_MARK.finditer(self._buffer, start) if m[0] in (OPEN, CLOSE))
        return next(marks, None)

    def _take_call(self, end: int | None) -> str:
        return self._take(len(self._buffer) if end is None else end + (self._buffer[end] == CLOSE))

    def _begin_call(self, name: str) -> None:
        self._events.append(CallStart(self.calls, name))
        self.calls += 1

    def _emit_call(self, body: str, *, complete: bool) -> bool:
        """Whether `body`, which is not written as calls are, names a call; one that is malformed has no arguments."""
        value = _parse(body)
        if value is None:
            found = NAME.search(body)
            value, complete = {"name": found and _parse(found["name"])}, False
        if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
            return False
        arguments = value.get("arguments", {})
        if isinstance(arguments, str):
            arguments = _parse(arguments)
        if not isinstance(arguments, dict):
            return False
        self._begin_call(value["name"])
        self._emit_arguments(dump(arguments))
        self._events.append(CallEnd(self.calls - 1, complete))
        return True

    def _read_arguments(self, arguments: _Arguments, final: bool) -> bool:
        if arguments.text is not None:
            return self._read_string(arguments, arguments.text, final)
        if not arguments.ended:
            return self._read_member(arguments, final)
        end = self._end_of_call(0)
        if end is None and not final:
            return False
        rest = unmark(self._buffer[:end])
        is_object = _parse('{"arguments": 0' + rest) is not None
        self._take_call(end)
        self._events.append(CallEnd(self.calls - 1, arguments.whole and end is not None and is_object))
        self._arguments = None
        return True

    def _read_member(self, arguments: _Arguments, final: bool) -> bool:
        closing = END_OF_OBJECT.match(self._buffer)
        if closing:
            self._take(closing.end())
            return self._end_arguments(arguments, whole=True)
        found = KEY.match(self._buffer)
        key = found and _parse(unmark(found["key"]))
        if found and isinstance(key, str):
            if self._buffer[found.end()] == '"':
                self._take(found.end() + 1)
                arguments.text = _Text(key)
                return True
            if self._read_other(arguments, key, found.end()):
                return True
        if final or self._end_of_call(0) is not None:
            return self._end_arguments(arguments, whole=False)
        return False

    def _read_other(self, arguments: _Arguments, key: str, start: int) -> bool:
        """Whether a value that is no string stands whole at `start`; it is sent then."""
        try:
            _, end = DECODER.raw_decode(self._buffer, start)
        except (ValueError, RecursionError):
            return False
        # A number that nothing follows may have lost digits.
        if self._buffer[start] not in "{[" and not END_OF_MEMBER.match(self._buffer, end):
            return False
        value = _parse(unmark(self._buffer[start:end]), default=self)
        if value is self:
            return False
        self._take(end)
        if key not in arguments.given:
            self._send_lead(arguments, key, dump(value))
        return True

    def _read_string(self, arguments: _Arguments, text: _Text, final: bool) -> bool:
        pieces = list[str]()
        at = 0
        while (piece := PIECE.match(self._buffer, at)) is not None:
            pieces.append(piece[0])
            at = piece.end()
        ended = self._buffer.startswith('"', at)
        if not ended and pieces and FIRST_OF_PAIR.fullmatch(pieces[-1]):
            at -= len(pieces.pop())
        self._take(at + ended)
        self._send_string(arguments, text, "".join(map(_escape, pieces)), ended=ended)
        if ended or final:
            arguments.text = None
        if final and not ended:
            self._buffer = ""
            if text.sent:
                self._emit_arguments('"')
        return ended or final

    def _send_string(self, arguments: _Arguments, text: _Text, piece: str, *, ended: bool) -> None:
        if not text.sent and text.key in arguments.given:
            return
        if (piece or ended) and not text.sent:
            self._send_lead(arguments, text.key, '"')
            text.sent = True
        self._emit_arguments(piece + '"' * ended)

    def _send_lead(self, arguments: _Arguments, key: str, value: str) -> None:
        self._emit_arguments(f"{', ' if arguments.given else '{'}{dump(key)}: {value}")
        arguments.given.add(key)

    def _end_arguments(self, arguments: _Arguments, *, whole: bool) -> bool:
        arguments.ended, arguments.whole = True, whole
        self._emit_arguments("}" if arguments.given else "{}")
        return True


def _escape(piece: str) -> str:
    """A piece of a string's inside as JSON has it."""
    return piece if ESCAPE.fullmatch(piece) else dump(unmark(piece))[1:-1]


def _parse(text: str, default: Any = None) -> Any:
    """What JSON text says, `default` for text that is none."""
    try:
        return parse_json(text, strict=False)
    except (ValueError, RecursionError):
        return default
