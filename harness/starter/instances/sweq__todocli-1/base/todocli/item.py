"""One thing to do."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Item:
    """One thing to do, with the number by which people name it."""

    number: int
    text: str
    done: bool = False
    tags: list[str] = field(default_factory=list)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Item:
        return cls(data["number"], data["text"], data["done"], list(data["tags"]))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def line(self) -> str:
        """The item as `list` prints it."""
        tags = "".join(f"  #{tag}" for tag in self.tags)
        return f"{self.number}  [{'x' if self.done else ' '}] {self.text}{tags}"
