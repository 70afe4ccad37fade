"""Tool calls in generated text, read as they arrive.

Which tokens delimit a call is decided on token ids: text that merely spells `<tool_call>`, as code about tool calls
does, never opens one. The id of a delimiter becomes a mark in the text, and the parsers (`coder_xml`, `hermes_json`)
read a plain string. What they return depends on the string alone and not on how it was cut, so streamed fragments
concatenate to what a whole answer holds, byte for byte.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from engine.errors import UserError
from engine.text.call_parser import CLOSE, CLOSE_TEXT, OPEN, OPEN_TEXT, CallParser, Event
from engine.text.coder_xml import CoderXmlParser
from engine.text.hermes_json import HermesParser
from engine.text.tokenizer import Tokenizer

CallFormat = Literal["qwen3_coder", "hermes"]


@dataclass(frozen=True)
class ToolSyntax:
    """How a model writes calls: the format inside, and the ids of the tokens around them."""

    format: CallFormat
    open_id: int
    close_id: int


def find_syntax(template: str, tokenizer: Tokenizer) -> ToolSyntax:
    """The syntax that a chat template's own text teaches the model.

    Raises UserError that says what is missing: a known format in the template, or the delimiters as single tokens.
    """
    if OPEN_TEXT in template and "<function=" in template and "<parameter=" in template:
        form: CallFormat = "qwen3_coder"
    elif OPEN_TEXT in template and '"arguments"' in template.replace("\\", ""):
        form = "hermes"
    else:
        raise UserError("its chat template has no tool calls of a known form; known: qwen3_coder XML, hermes JSON")
    ids = {text: tokenizer.token_id(text) for text in (OPEN_TEXT, CLOSE_TEXT)}
    open_id, close_id = ids[OPEN_TEXT], ids[CLOSE_TEXT]
    if open_id is None or close_id is None:
        missing = next(text for text, found in ids.items() if found is None)
        raise UserError(f"its chat template writes {missing}, which is not a token of its tokenizer")
    return ToolSyntax(form, open_id, close_id)


def parameter_schemas(tools: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Function name -> JSON schema of its parameters (empty where the tool declares none), from OpenAI's `tools`."""
    functions = [tool["function"] for tool in tools]
    return {function["name"]: function.get("parameters") or {} for function in functions}


class ToolCallStream:
    """The answer of one generation as text and calls.

    `push` takes the new ids and the text that the engine released for them, which may lag behind the ids; `finish` ends
    the answer. `calls` counts the calls begun so far.
    """

    def __init__(self, syntax: ToolSyntax, tokenizer: Tokenizer, tools: Sequence[Mapping[str, Any]]) -> None:
        self._marker = _Marker(syntax, tokenizer)
        self._parser = make_parser(syntax.format, parameter_schemas(tools))

    @property
    def calls(self) -> int:
        return self._parser.calls

    def push(self, ids: Sequence[int], text: str) -> list[Event]:
        return self._parser.push(self._marker.push(ids, text))

    def finish(self) -> list[Event]:
        return self._parser.push(self._marker.finish()) + self._parser.finish()


def make_parser(form: CallFormat, schemas: Mapping[str, Mapping[str, Any]]) -> CallParser:
    """A fresh parser of `form` for one answer."""
    return CoderXmlParser(schemas) if form == "qwen3_coder" else HermesParser(schemas)


class _Marker:
    """Puts marks into released text where the delimiters' ids stand.

    The ids are decoded a second time, only to count characters: the released text is the engine's own, which ends
    before a stop string.
    """

    def __init__(self, syntax: ToolSyntax, tokenizer: Tokenizer) -> None:
        self._marks = {syntax.open_id: (OPEN, OPEN_TEXT), syntax.close_id: (CLOSE, CLOSE_TEXT)}
        self._detokenizer = tokenizer.detokenizer()
        self._decoded = 0
        self._released = 0
        self._held = ""
        self._pending: list[tuple[int, int, str]] = []

    def push(self, ids: Sequence[int], text: str) -> str:
        for token in ids:
            piece = self._detokenizer.push([token])
            self._decoded += len(piece)
            if token in self._marks:
                mark, spelled = self._marks[token]
                # A delimiter flagged as special has no text of its own.
                shown = len(spelled) if piece.endswith(spelled) else 0
                self._pending.append((self._decoded - shown, self._decoded, mark))
        self._held += text
        result = []
        while self._pending and self._pending[0][1] <= self._released + len(self._held):
            start, end, mark = self._pending.pop(0)
            result += [self._release(start), mark]
            self._release(end)
        limit = self._pending[0][0] if self._pending else self._released + len(self._held)
        return "".join([*result, self._release(limit)])

    def finish(self) -> str:
        """A delimiter that a stop string cut stays text."""
        return self._held

    def _release(self, end: int) -> str:
        count = max(0, end - self._released)
        released, self._held = self._held[:count], self._held[count:]
        self._released += len(released)
        return released
