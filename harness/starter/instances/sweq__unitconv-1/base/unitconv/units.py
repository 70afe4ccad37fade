"""One unit of measurement."""

from __future__ import annotations

from dataclasses import dataclass, replace

_PREFIXES = {"k": 1e3, "c": 1e-2, "m": 1e-3}


@dataclass(frozen=True)
class Unit:
    """A unit, described by the base unit of its dimension.

    dimension: what it measures, such as "length"
    scale: how many base units one step of it is
    offset: the base unit's reading where this unit reads zero
    metric: whether it takes the prefixes k, c and m
    """

    symbol: str
    dimension: str
    scale: float
    offset: float = 0.0
    metric: bool = False

    def to_base(self, value: float) -> float:
        """The reading in base units for a reading in this unit."""
        return (value + self.offset) * self.scale

    def from_base(self, value: float) -> float:
        """The reading in this unit for a reading in base units."""
        return value / self.scale - self.offset

    def prefixed(self, prefix: str) -> Unit:
        """This unit with a metric prefix."""
        return replace(self, symbol=prefix + self.symbol, scale=self.scale * _PREFIXES[prefix], metric=False)
