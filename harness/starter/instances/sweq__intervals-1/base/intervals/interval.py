"""One half-open interval."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Interval:
    """All numbers x with start <= x < end. Empty intervals are not allowed."""

    start: float
    end: float

    def __post_init__(self) -> None:
        if not self.start < self.end:
            raise ValueError(f"interval needs start < end, got {self.start} and {self.end}")

    @property
    def length(self) -> float:
        return self.end - self.start

    def __contains__(self, value: float) -> bool:
        return self.start <= value < self.end

    def overlaps(self, other: Interval) -> bool:
        """Whether some number lies in both."""
        return self.start < other.end and other.start < self.end

    def intersection(self, other: Interval) -> Interval | None:
        """The numbers that lie in both, or None when there are none."""
        start, end = max(self.start, other.start), min(self.end, other.end)
        return Interval(start, end) if start < end else None

    def shift(self, amount: float) -> Interval:
        """The interval moved by `amount`."""
        return Interval(self.start + amount, self.end + amount)

    def __str__(self) -> str:
        return f"[{self.start}, {self.end})"
