"""The output items of a response as they grow, and the named events that tell it."""

import json
import uuid
from collections.abc import Mapping
from typing import Any, Literal

Status = Literal["in_progress", "completed", "incomplete"]


class EventWriter:
    """Server-sent events in the form of `/v1/responses`: named, and numbered from 0."""

    def __init__(self) -> None:
        self._count = 0

    def write(self, name: str, fields: Mapping[str, Any]) -> str:
        """One event `response.<name>`."""
        return self.write_json(name, json.dumps(fields)[1:-1])

    def write_json(self, name: str, members: str) -> str:
        """The same of fields that are JSON already, without the braces."""
        number, self._count = self._count, self._count + 1
        kind = f"response.{name}"
        return f'event: {kind}\ndata: {{"type": "{kind}", "sequence_number": {number}, {members}}}\n\n'


class OutputItems:
    """Messages and function calls, built from the deltas of a Turn, in the order in which they were written.

    An item is open until the next begins or the answer ends. `items` are all of them in the form of the API.
    """

    def __init__(self, events: EventWriter) -> None:
        self.items: list[dict[str, Any]] = []
        self._events = events
        self._is_open = False
        self._place = ""
        self._written: list[str] = []

    def add(self, delta: Mapping[str, Any]) -> str:
        """Take in one delta of chat completions; the events that it makes."""
        if "content" in delta:
            start = "" if self._is_open and self.items[-1]["type"] == "message" else self._open_message()
            return start + self._grow("output_text.delta", delta["content"])
        (call,) = delta["tool_calls"]
        start = self._open_call(call) if "id" in call else ""
        fragment = call["function"]["arguments"]
        return start + (self._grow("function_call_arguments.delta", fragment) if fragment else "")

    def close(self, status: Status = "completed") -> str:
        """End the open item, if there is one; the events that say so."""
        if not self._is_open:
            return ""
        self._is_open = False
        item = self.items[-1]
        item["status"] = status
        done = self._close_message(item) if item["type"] == "message" else self._close_call(item)
        return done + self._events.write("output_item.done", {"output_index": len(self.items) - 1, "item": item})

    def _open(self, item: dict[str, Any]) -> str:
        closed = self.close()
        self.items.append(item)
        self._is_open, self._written = True, []
        index = len(self.items) - 1
        self._place = f'"item_id": "{item["id"]}", "output_index": {index}'
        return closed + self._events.write("output_item.added", {"output_index": index, "item": item})

    def _open_message(self) -> str:
        item = {"id": _new_id("msg"), "type": "message", "role": "assistant", "status": "in_progress", "content": []}
        opened = self._open(item)
        self._place += ', "content_index": 0'
        return opened + self._events.write_json("content_part.added", f'{self._place}, "part": {_part("")}')

    def _open_call(self, call: Mapping[str, Any]) -> str:
        about = {"call_id": call["id"], "name": call["function"]["name"], "arguments": ""}
        return self._open({"id": _new_id("fc"), "type": "function_call", "status": "in_progress", **about})

    def _grow(self, event: str, text: str) -> str:
        self._written.append(text)
        logprobs = ', "logprobs": []' if event == "output_text.delta" else ""
        return self._events.write_json(event, f'{self._place}, "delta": {json.dumps(text)}{logprobs}')

    def _close_message(self, item: dict[str, Any]) -> str:
        text = "".join(self._written)
        item["content"] = [json.loads(_part(text))]
        write = self._events.write_json
        done = write("output_text.done", f'{self._place}, "text": {json.dumps(text)}, "logprobs": []')
        return done + write("content_part.done", f'{self._place}, "part": {_part(text)}')

    def _close_call(self, item: dict[str, Any]) -> str:
        item["arguments"] = "".join(self._written)
        fields = f'{self._place}, "name": {json.dumps(item["name"])}, "arguments": {json.dumps(item["arguments"])}'
        return self._events.write_json("function_call_arguments.done", fields)


def _part(text: str) -> str:
    return json.dumps({"type": "output_text", "text": text, "annotations": [], "logprobs": []})


def _new_id(kind: str) -> str:
    return f"{kind}_{uuid.uuid4().hex}"
