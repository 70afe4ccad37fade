"""What can go wrong with units."""


class UnitError(ValueError):
    """An unknown unit, units that measure different things, or a quantity that cannot be read."""
