"""Which earlier answer a request continues, for agents that keep their history themselves."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from harness.agent.model import Message, Usage


class Conversations:
    """Every conversation seen so far, each with the usage of its last call; an agent may hold several."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, ...], Usage] = {}

    def find(self, messages: Sequence[Message]) -> tuple[int, Usage | None]:
        """How many of `messages` the longest known conversation begins with, and the usage of its last call."""
        keys = tuple(_key(message) for message in messages)
        fitting = [known for known in self._known if known == keys[: len(known)]]
        longest = max(fitting, key=len, default=())
        return len(longest), self._known.get(longest)

    def add(self, messages: Sequence[Message], answer: Message, usage: Usage) -> None:
        """Remember `messages` with their answer, in the place of the conversation that they continue."""
        keys = tuple(_key(message) for message in (*messages, answer))
        known, _ = self.find(messages)
        self._known.pop(keys[:known], None)
        self._known[keys] = usage


def _key(message: Message) -> str:
    """A hash of what a message says: clients send answers back with other ids, spacing and empty fields."""
    calls = [_call(call) for call in message.get("tool_calls") or ()]
    said = [message.get("role"), _text(message.get("content")), calls]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "".join(str(part.get("text", part)) if isinstance(part, dict) else str(part) for part in content).strip()
    return str(content or "").strip()


def _call(call: Any) -> Any:
    function = call.get("function", {}) if isinstance(call, dict) else {}
    arguments = function.get("arguments") or "{}"
    try:
        return [function.get("name"), json.loads(arguments)]
    except (ValueError, TypeError, RecursionError):
        return [function.get("name"), str(arguments)]
