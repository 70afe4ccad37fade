"""Sets of numbers described by intervals."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from intervals.interval import Interval


def merge(intervals: Iterable[Interval]) -> list[Interval]:
    """The shortest sorted list of intervals that covers the same numbers."""
    merged: list[Interval] = []
    for interval in sorted(intervals):
        if merged and interval.start < merged[-1].end:
            merged[-1] = Interval(merged[-1].start, max(merged[-1].end, interval.end))
        else:
            merged.append(interval)
    return merged


class IntervalSet:
    """An immutable set of numbers, kept as the shortest sorted list of intervals.

    Two sets are equal when they hold the same numbers, no matter from which intervals they were made.
    """

    def __init__(self, intervals: Iterable[Interval] = ()) -> None:
        self._intervals = tuple(merge(intervals))

    def __iter__(self) -> Iterator[Interval]:
        return iter(self._intervals)

    def __len__(self) -> int:
        return len(self._intervals)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, IntervalSet) and self._intervals == other._intervals

    def __hash__(self) -> int:
        return hash(self._intervals)

    def __contains__(self, value: float) -> bool:
        return any(value in interval for interval in self._intervals)

    def __or__(self, other: IntervalSet) -> IntervalSet:
        return IntervalSet([*self, *other])

    def __and__(self, other: IntervalSet) -> IntervalSet:
        common = (left.intersection(right) for left in self for right in other)
        return IntervalSet(interval for interval in common if interval is not None)

    @property
    def length(self) -> float:
        """Total length of all intervals."""
        return sum(interval.length for interval in self._intervals)

    def gaps(self, within: Interval) -> list[Interval]:
        """The parts of `within` that the set does not cover, in order."""
        free, position = [], within.start
        for interval in self._intervals:
            if interval.end <= within.start or interval.start >= within.end:
                continue
            if interval.start > position:
                free.append(Interval(position, interval.start))
            position = max(position, interval.end)
        if position < within.end:
            free.append(Interval(position, within.end))
        return free

    def __repr__(self) -> str:
        return f"IntervalSet({', '.join(map(str, self._intervals))})"
