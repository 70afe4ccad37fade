"""Responses kept in memory, so that a later request can continue one by its id."""

import json
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.errors import MissingError

DEFAULT_COUNT = 4096
DEFAULT_BYTES = 256 << 20

Item = Mapping[str, Any]


@dataclass(frozen=True)
class Context:
    """The items of a conversation from its beginning, and their size as JSON in bytes."""

    items: tuple[Item, ...] = ()
    bytes: int = 0

    def extended(self, items: Sequence[Item]) -> "Context":
        return Context((*self.items, *items), self.bytes + len(json.dumps(list(items))))


@dataclass(frozen=True)
class StoredResponse:
    """A finished response as the client got it, with the conversation that it ends."""

    body: bytes
    context: Context

    @property
    def bytes(self) -> int:
        """What it costs: items that it shares with other responses count in each, which is the safe side."""
        return len(self.body) + self.context.bytes


class ResponseStore:
    """The latest used responses by id, at most `max_count` of them in at most `max_bytes`. Thread-safe."""

    def __init__(self, max_count: int = DEFAULT_COUNT, max_bytes: int = DEFAULT_BYTES) -> None:
        self.bytes = 0
        self._max_count = max_count
        self._max_bytes = max_bytes
        self._responses: OrderedDict[str, StoredResponse] = OrderedDict()
        self._items: dict[str, Item] = {}
        self._item_ids: dict[str, list[str]] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._responses)

    def keep(self, response_id: str, response: StoredResponse, output: Sequence[Item]) -> None:
        """Keep a new response, whose items `output` can be referred to by their ids."""
        with self._lock:
            self._responses[response_id] = response
            self._items |= {item["id"]: item for item in output}
            self._item_ids[response_id] = [item["id"] for item in output]
            self.bytes += response.bytes
            while len(self._responses) > self._max_count or self.bytes > self._max_bytes:
                self._drop(next(iter(self._responses)))

    def get(self, response_id: str, param: str | None = None) -> StoredResponse:
        """The response; MissingError, naming the field `param`, when it is not kept."""
        with self._lock:
            if response_id not in self._responses:
                raise _missing("response", response_id, param)
            self._responses.move_to_end(response_id)
            return self._responses[response_id]

    def item(self, item_id: str, param: str) -> Item:
        """An output item of a response that is kept; MissingError otherwise."""
        with self._lock:
            if item_id not in self._items:
                raise _missing("item", item_id, param)
            return self._items[item_id]

    def delete(self, response_id: str) -> None:
        """Forget the response; MissingError when it is not kept."""
        with self._lock:
            if response_id not in self._responses:
                raise _missing("response", response_id, None)
            self._drop(response_id)

    def _drop(self, response_id: str) -> None:
        self.bytes -= self._responses.pop(response_id).bytes
        for item_id in self._item_ids.pop(response_id):
            del self._items[item_id]


def _missing(kind: str, name: str, param: str | None) -> MissingError:
    message = f"{kind} {name!r} is not kept here: it never was, was deleted, or made room for later ones"
    return MissingError(f"{param}: {message}" if param else message, param=param, code=f"{kind}_not_found")
