"""Quantities with units."""

from unitconv.errors import UnitError
from unitconv.quantity import Quantity, convert, parse
from unitconv.registry import DEFAULT, Registry
from unitconv.units import Unit

__all__ = ["DEFAULT", "Quantity", "Registry", "Unit", "UnitError", "convert", "parse"]
