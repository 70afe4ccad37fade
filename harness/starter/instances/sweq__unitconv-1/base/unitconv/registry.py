"""Units by their symbols."""

from unitconv.errors import UnitError
from unitconv.units import Unit

_PREFIXES = ("k", "c", "m")


class Registry:
    """Units by symbol; prefixed metric units are made when they are asked for."""

    def __init__(self) -> None:
        self._units: dict[str, Unit] = {}

    def define(
        self, symbol: str, dimension: str, scale: float, offset: float = 0.0, metric: bool = False
    ) -> Unit:
        """Add a unit; see `Unit` for the arguments. Raises `UnitError` when the symbol is taken."""
        if symbol in self._units:
            raise UnitError(f"unit {symbol!r} is already defined")
        if scale <= 0:
            raise UnitError(f"scale of {symbol!r} must be positive")
        unit = self._units[symbol] = Unit(symbol, dimension, scale, offset, metric)
        return unit

    def unit(self, symbol: str) -> Unit:
        """The unit with this symbol; raises `UnitError` when it is unknown."""
        if symbol in self._units:
            return self._units[symbol]
        prefix, rest = symbol[:1], symbol[1:]
        base = self._units.get(rest)
        if prefix in _PREFIXES and base is not None and base.metric:
            return base.prefixed(prefix)
        raise UnitError(f"unknown unit {symbol!r}")

    def symbols(self, dimension: str) -> list[str]:
        """The defined symbols that measure `dimension`, smallest unit first."""
        units = [unit for unit in self._units.values() if unit.dimension == dimension]
        return [unit.symbol for unit in sorted(units, key=lambda unit: unit.scale)]


def _default() -> Registry:
    registry = Registry()
    registry.define("m", "length", 1.0, metric=True)
    registry.define("in", "length", 0.0254)
    registry.define("ft", "length", 0.3048)
    registry.define("mi", "length", 1609.344)
    registry.define("g", "mass", 1e-3, metric=True)
    registry.define("lb", "mass", 0.45359237)
    registry.define("oz", "mass", 0.45359237 / 16)
    registry.define("K", "temperature", 1.0, metric=True)
    registry.define("degC", "temperature", 1.0, offset=273.15)
    registry.define("degF", "temperature", 5 / 9, offset=273.15 - 32 * 5 / 9)
    return registry


DEFAULT = _default()
