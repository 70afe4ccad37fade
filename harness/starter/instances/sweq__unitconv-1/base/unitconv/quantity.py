"""Numbers with a unit."""

from __future__ import annotations

import re
from dataclasses import dataclass

from unitconv.errors import UnitError
from unitconv.registry import DEFAULT, Registry
from unitconv.units import Unit

_QUANTITY = re.compile(r"\s*(?P<value>\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)\s*(?P<unit>[A-Za-z]+)\s*")


@dataclass(frozen=True)
class Quantity:
    """A reading in some unit."""

    value: float
    unit: Unit
    registry: Registry = DEFAULT

    def to(self, symbol: str) -> Quantity:
        """The same quantity in another unit; raises `UnitError` when that measures something else."""
        target = self.registry.unit(symbol)
        if target.dimension != self.unit.dimension:
            raise UnitError(f"cannot convert {self.unit.dimension} to {target.dimension}")
        return Quantity(target.from_base(self.unit.to_base(self.value)), target, self.registry)

    def __str__(self) -> str:
        return f"{self.value:.6g} {self.unit.symbol}"


def parse(text: str, registry: Registry = DEFAULT) -> Quantity:
    """The quantity written as `text`, such as "3.5 km"; raises `UnitError` when it cannot be read."""
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise UnitError(f"not a quantity: {text!r}")
    return Quantity(float(match["value"]), registry.unit(match["unit"]), registry)


def convert(value: float, source: str, target: str, registry: Registry = DEFAULT) -> float:
    """`value` read in unit `source`, as read in unit `target`."""
    return Quantity(value, registry.unit(source), registry).to(target).value
