"""The XML-like calls of Qwen3-Coder.

    <tool_call>
    <function=NAME>
    <parameter=P>
    VALUE
    </parameter>
    </function>
    </tool_call>

Nothing in a value is escaped, so a tag inside one is only told from the tag that ends it by what follows:
`</parameter>` ends a value before another `<parameter=` or before an ending `</function>`, and `</function>` ends a
call before a delimiter token or the end of the answer. Exactly one newline belongs to the tags at either side of a
value. Slips that are understood: a missing `</parameter>` (before a declared parameter not given yet, or the call's
end), a missing `</function>`, a missing delimiter around a declared function's call, `<parameter=NAME=VALUE`, and a tag
that ends at its line's end without `>`.

A value that is text is passed on as it comes, all but an end that may yet belong to a tag. Any other is passed on when
it is whole. So a call that breaks off keeps the text so far of its last parameter; the answer's finish reason says that
it broke off.
"""

import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from engine.text.argument_types import dump, is_text, may_be_null, to_json
from engine.text.call_parser import (
    CLOSE,
    CLOSE_TEXT,
    OPEN,
    SPACE,
    CallEnd,
    CallParser,
    CallStart,
    find_ahead,
    find_undecided,
    skip_space,
    split_undecided,
    unmark,
)

FUNCTION, PARAMETER, END_PARAMETER, END_FUNCTION = "<function=", "<parameter=", "</parameter>", "</function>"

CALL = re.compile(f"{OPEN}|{FUNCTION}")
VALUE_END = re.compile(f"\n?(?:{END_PARAMETER}|{END_FUNCTION}|{CLOSE})|\n{PARAMETER}")
TAGS = (END_PARAMETER, END_FUNCTION, PARAMETER)
ENDINGS = (*(f"\n{tag}" for tag in TAGS), END_PARAMETER, END_FUNCTION)
LONGEST_END = max(map(len, ENDINGS))
NAME = re.compile(rf"([^<>\n{OPEN}{CLOSE}]+)(>|\n)")
PARAMETER_NAME = re.compile(rf"([^<>=\n{OPEN}{CLOSE}]+)(>|=|\n)")
UNFINISHED_NAME = re.compile(rf"[^<>\n{OPEN}{CLOSE}]*\Z")


@dataclass
class _Call:
    """The call being read. `bare` means that no delimiter token opened it; `schema` that of its arguments."""

    name: str
    bare: bool
    schema: Mapping[str, Any]
    properties: Mapping[str, Any]
    given: set[str] = field(default_factory=set)


@dataclass
class _Parameter:
    """The parameter of which the rest of the value stands at the front of the buffer.

    `inline`: the slip `<parameter=NAME=VALUE`. `streams`: the value goes out as it comes. `begun`: some of it was taken
    from the buffer. `sent`: some of it went out.
    """

    name: str
    inline: bool
    streams: bool
    begun: bool = False
    sent: bool = False


class CoderXmlParser(CallParser):
    """Emits a call's name as soon as it is known, then its arguments: text as it comes, other values when whole."""

    def __init__(self, schemas: Mapping[str, Mapping[str, Any]]) -> None:
        super().__init__(schemas)
        self._call: _Call | None = None
        self._parameter: _Parameter | None = None
        self._scanned = 0
        self._line_start = True

    def _advance(self, final: bool) -> bool:
        if not self._buffer and not (final and self._call):
            return False
        if self._call is None:
            return self._read_text(final)
        if self._parameter is None:
            return self._read_body(self._call, final)
        return self._read_value(self._call, self._parameter, final)

    def _read_text(self, final: bool) -> bool:
        for match in CALL.finditer(self._buffer, self._scanned):
            header = self._call_header(match.start(), final)
            if header is None:
                self._scanned = match.start() - self._pass_text(len(self._buffer[: match.start()].rstrip(SPACE)))
                return False
            name, end = header
            if name:
                self._begin_call(name, match.start(), end)
                return True
        return self._read_rest(final)

    def _read_rest(self, final: bool) -> bool:
        if final:
            # White space after the last call separates it from nothing.
            self._pass_text(len(self._buffer) if self._buffer.strip(SPACE) or not self.calls else 0)
            self._buffer = ""
            return False
        self._scanned = len(self._buffer) - self._pass_text(split_undecided(self._buffer, (FUNCTION,)))
        self._scanned = max(0, self._scanned - len(FUNCTION) + 1)
        return False

    def _pass_text(self, end: int) -> int:
        """Emit the buffer up to `end`; its length."""
        if end:
            text = self._take(end)
            self._line_start = text.endswith("\n")
            self._emit_text(text)
        return end

    def _call_header(self, at: int, final: bool) -> tuple[str, int] | None:
        """Name and end of the header of a call that begins at `at`; name "" when none does; None: undecided."""
        bare = self._buffer[at] != OPEN
        if bare and not self._begins_line(at):
            return "", at
        start = at if bare else skip_space(self._buffer, at + 1)
        word = find_ahead(self._buffer, start, (FUNCTION,), final)
        if not word:
            return None if word is None else ("", at)
        start += len(word)
        match = NAME.match(self._buffer, start)
        if match is None:
            undecided = not final and UNFINISHED_NAME.match(self._buffer, start)
            return None if undecided else ("", at)
        name = match[1].strip()
        if not bare:
            return name, match.end()
        return self._bare_header(name, at, match.end(), final)

    def _bare_header(self, name: str, at: int, end: int, final: bool) -> tuple[str, int] | None:
        if name not in self._schemas:
            return "", at
        word = find_ahead(self._buffer, skip_space(self._buffer, end), (PARAMETER, END_FUNCTION), final)
        return None if word is None else (name, end) if word else ("", at)

    def _begins_line(self, at: int) -> bool:
        before = self._buffer[:at].rstrip(" \t")
        return before.endswith("\n") if before else self._line_start

    def _begin_call(self, name: str, at: int, end: int) -> None:
        bare = self._buffer[at] != OPEN
        before = self._take(end)[:at].rstrip(SPACE)
        self._emit_text(before)
        schema = self._schemas.get(name, {})
        properties = schema.get("properties")
        self._call = _Call(name, bare, schema, properties if isinstance(properties, Mapping) else {})
        self._events.append(CallStart(self.calls, name))
        self.calls += 1

    def _read_body(self, call: _Call, final: bool) -> bool:
        start = skip_space(self._buffer, 0)
        word = find_ahead(self._buffer, start, (PARAMETER, END_FUNCTION, CLOSE, OPEN), final)
        if word is None:
            return False
        if word == PARAMETER:
            return self._begin_parameter(call, start + len(word), final)
        if word == END_FUNCTION:
            return self._end_function(call, start + len(word), final)
        if word or start == len(self._buffer):
            self._end_call(call, start + (word == CLOSE), complete=bool(word))
        else:
            # Text between parameters belongs to nothing.
            following = re.compile(f"<|{OPEN}|{CLOSE}").search(self._buffer, start + 1)
            self._take(following.start() if following else len(self._buffer))
        return True

    def _begin_parameter(self, call: _Call, start: int, final: bool) -> bool:
        match = PARAMETER_NAME.match(self._buffer, start)
        if match is None:
            if not final and UNFINISHED_NAME.match(self._buffer, start):
                return False
            self._take(start)
            return True
        self._take(match.end())
        name = match[1].strip()
        streams = name not in call.given and is_text(call.properties.get(name), call.schema)
        self._parameter = _Parameter(name, inline=match[2] == "=", streams=streams)
        if match[2] == "\n":
            self._buffer = "\n" + self._buffer
        self._scanned = 0
        return True

    def _end_function(self, call: _Call, end: int, final: bool) -> bool:
        start = skip_space(self._buffer, end)
        word = find_ahead(self._buffer, start, (CLOSE, CLOSE_TEXT), final)
        if word is None:
            return False
        self._end_call(call, start + len(word) if word else end)
        return True

    def _end_call(self, call: _Call, end: int, *, complete: bool = True) -> None:
        self._take(end)
        self._emit_arguments("}" if call.given else "{}")
        self._events.append(CallEnd(self.calls - 1, complete))
        self._call, self._scanned, self._line_start = None, 0, True

    def _read_value(self, call: _Call, parameter: _Parameter, final: bool) -> bool:
        for match in VALUE_END.finditer(self._buffer, self._scanned):
            ends = self._ends_value(call, parameter, match, final)
            if ends is None:
                self._scanned = match.start() - self._pass_value(call, parameter, match.start())
                return False
            if ends:
                self._end_value(call, parameter, self._buffer[: match.start()])
                self._take(match.end() if match[0].endswith(END_PARAMETER) else match.start())
                return True
        taken = self._pass_value(call, parameter, find_undecided(self._buffer, ENDINGS))
        self._scanned = max(0, self._scanned - taken, len(self._buffer) - LONGEST_END)
        if final:
            self._break_off(parameter)
        return final

    def _pass_value(self, call: _Call, parameter: _Parameter, end: int) -> int:
        """Send the buffer up to `end` where it is text for certain; how much was taken."""
        if parameter.inline and self._buffer.endswith(">", 0, end):
            end -= 1
        schema = call.properties.get(parameter.name)
        held = not parameter.sent and may_be_null(self._buffer[:end], schema, call.schema)
        if not parameter.streams or held or end <= 0:
            return 0
        text = self._own_text(parameter, self._take(end))
        parameter.begun = True
        if text:
            self._send_lead(call, parameter, '"')
            self._emit_arguments(dump(text)[1:-1])
        return end

    def _end_value(self, call: _Call, parameter: _Parameter, raw: str) -> None:
        text = self._own_text(parameter, raw.removesuffix(">") if parameter.inline else raw)
        if parameter.sent:
            self._emit_arguments(dump(text)[1:])
        elif parameter.name not in call.given:
            value = to_json(text, call.properties.get(parameter.name), call.schema)
            self._send_lead(call, parameter, value)
        self._parameter = None

    def _break_off(self, parameter: _Parameter) -> None:
        if parameter.sent:
            self._emit_arguments('"')
        self._buffer, self._parameter = "", None

    def _own_text(self, parameter: _Parameter, raw: str) -> str:
        """Without the newline that belongs to the tag before it."""
        return unmark(raw if parameter.inline or parameter.begun else raw.removeprefix("\n"))

    def _send_lead(self, call: _Call, parameter: _Parameter, value: str) -> None:
        """Send what stands before a value and the value's beginning, once."""
        if not parameter.sent:
            self._emit_arguments(f"{', ' if call.given else '{'}{dump(parameter.name)}: {value}")
        call.given.add(parameter.name)
        parameter.sent = True

    def _ends_value(self, call: _Call, parameter: _Parameter, match: re.Match[str], final: bool) -> bool | None:
        end = match.end()
        tag = match[0].removeprefix("\n")
        if tag == PARAMETER:
            return self._begins_declared(call.given | {parameter.name}, call.properties, end, final)
        if tag == END_FUNCTION:
            # Without the `</parameter>` before it, more must follow than what may be the next line of the text.
            return self._ends_function(call, end, (CLOSE, OPEN, CLOSE_TEXT), final)
        if tag == CLOSE:
            # The model may write about tool calls: inside of a value this token is text unless the call is over.
            return self._follows(end, (OPEN,), final)
        start = skip_space(self._buffer, end)
        if self._buffer.startswith(END_FUNCTION, start):
            words = (CLOSE, OPEN, FUNCTION, CLOSE_TEXT)
            return self._ends_function(call, start + len(END_FUNCTION), words, final)
        return self._follows(end, (PARAMETER, END_FUNCTION, CLOSE, OPEN), final)

    def _begins_declared(self, given: Set[str], properties: Mapping[str, Any], start: int, final: bool) -> bool | None:
        names = [f"{name}>" for name in properties.keys() - given]
        word = find_ahead(self._buffer, start, names, final) if names else ""
        return None if word is None else bool(word)

    def _ends_function(self, call: _Call, end: int, words: Sequence[str], final: bool) -> bool | None:
        if call.bare:
            return True
        start = skip_space(self._buffer, end)
        if self._buffer.startswith(CLOSE_TEXT, start):
            return self._follows(start + len(CLOSE_TEXT), (OPEN,), final)
        return self._follows(end, words, final)

    def _follows(self, at: int, words: Sequence[str], final: bool) -> bool | None:
        """Whether one of `words`, whole or cut off by the answer's end, or that end itself follows; None: undecided."""
        start = skip_space(self._buffer, at)
        word = find_ahead(self._buffer, start, words, final)
        if word == "":
            rest = self._buffer[start:]
            return final and any(each.startswith(rest) for each in words)
        return None if word is None else True
