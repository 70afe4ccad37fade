"""The list, kept in a JSON file."""

from __future__ import annotations

import json
from pathlib import Path

from todocli.item import Item


class NoSuchItem(Exception):
    """There is no item with this number."""

    def __init__(self, number: int) -> None:
        super().__init__(f"no item {number}")


class Store:
    """The items of one list. A number names one item for good: it is not given to another later."""

    def __init__(self) -> None:
        self._items: dict[int, Item] = {}

    @classmethod
    def load(cls, path: Path) -> Store:
        """The list in the file at `path`; an empty one when there is no such file."""
        store = cls()
        if path.exists():
            for data in json.loads(path.read_text(encoding="utf-8"))["items"]:
                item = Item.from_json(data)
                store._items[item.number] = item
        return store

    def save(self, path: Path) -> None:
        """Write the list to `path`, by way of a temporary file beside it."""
        data = {"items": [item.to_json() for item in self._items.values()]}
        scratch = path.with_name(path.name + ".tmp")
        scratch.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
        scratch.replace(path)

    def add(self, text: str, tags: list[str]) -> Item:
        """Put a new item at the end of the list."""
        number = len(self._items) + 1
        item = self._items[number] = Item(number, text, tags=sorted(set(tags)))
        return item

    def item(self, number: int) -> Item:
        """The item with this number; raises `NoSuchItem`."""
        if number not in self._items:
            raise NoSuchItem(number)
        return self._items[number]

    def remove(self, number: int) -> None:
        """Take the item with this number off the list; raises `NoSuchItem`."""
        self._items.pop(number, None)

    def items(self, tag: str | None = None, done: bool | None = None) -> list[Item]:
        """The items with this tag and this state, in the order in which they were added; None means any."""
        return [
            item
            for item in self._items.values()
            if (tag is None or tag in item.tags) and (done is None or item.done is done)
        ]
