"""One assistant turn as it grows: text and tool calls in the wire form of chat completions."""

import uuid
from collections.abc import Iterable, Sequence
from typing import Any

from engine.text.call_parser import CallArguments, CallEnd, CallStart, Event, TextPart
from engine.text.tool_calls import ToolCallStream


class Turn:
    """Reads one choice's output. `push` and `finish` return the deltas that are new; `message` is their sum.

    `ids` are all that came. `reader` None passes text through. With `one_call`, what comes after the first call is
    dropped.
    """

    def __init__(self, reader: ToolCallStream | None = None, *, one_call: bool = False) -> None:
        self._reader = reader
        self._one_call = one_call
        self.ids: list[int] = []
        self._written: list[str] = []
        self._content: list[str] = []
        self._calls: list[dict[str, Any]] = []
        self._is_whole = True
        self._is_over = False

    def push(self, ids: Sequence[int], text: str) -> list[dict[str, Any]]:
        """Take in the next ids and the text released for them."""
        self.ids += ids
        self._written.append(text)
        if self._reader is None:
            return self._deltas([TextPart(text)] if text else [])
        return self._deltas(self._reader.push(ids, text))

    def finish(self) -> list[dict[str, Any]]:
        """What was held back, now that the answer has ended."""
        return [] if self._reader is None else self._deltas(self._reader.finish())

    @property
    def text(self) -> str:
        """All text as the model wrote it, calls included."""
        return "".join(self._written)

    @property
    def message(self) -> dict[str, Any]:
        """The assistant message so far; `content` is null when there are only calls."""
        text = "".join(self._content)
        message = {"role": "assistant", "content": text if text or not self._calls else None, "refusal": None}
        return message | ({"tool_calls": self._calls} if self._calls else {})

    @property
    def is_whole(self) -> bool:
        """Whether the message says all that was generated: no call was broken off or dropped."""
        return self._is_whole

    def finish_reason(self, reason: str | None) -> str | None:
        return "tool_calls" if reason == "stop" and self._calls else reason

    def _deltas(self, events: Iterable[Event]) -> list[dict[str, Any]]:
        deltas: list[dict[str, Any]] = []
        for event in events:
            if self._is_over:
                self._is_whole = False
                break
            self._add(event, deltas)
        return deltas

    def _add(self, event: Event, deltas: list[dict[str, Any]]) -> None:
        match event:
            case TextPart():
                self._content.append(event.text)
                deltas.append({"content": event.text})
            case CallStart():
                function = {"name": event.name, "arguments": ""}
                call = {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}
                self._calls.append(call)
                deltas.append({"tool_calls": [{"index": event.index, **call, "function": dict(function)}]})
            case CallArguments():
                self._calls[event.index]["function"]["arguments"] += event.fragment
                deltas.append({"tool_calls": [{"index": event.index, "function": {"arguments": event.fragment}}]})
            case CallEnd():
                self._is_whole = self._is_whole and event.complete
                self._is_over = self._one_call
