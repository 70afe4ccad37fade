import pytest

from unitconv import UnitError, convert


@pytest.mark.parametrize(
    ("value", "source", "target", "expected"),
    [
        (5, "km", "m", 5000),
        (1, "mi", "km", 1.609344),
        (12, "in", "ft", 1),
        (2, "kg", "lb", 4.409245),
        (250, "mg", "g", 0.25),
        (300, "K", "mK", 300000),
    ],
    ids=["km-m", "mi-km", "in-ft", "kg-lb", "mg-g", "K-mK"],
)
def test_scaled_units(value, source, target, expected):
    assert convert(value, source, target) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("celsius", "kelvin"), [(0, 273.15), (100, 373.15), (-273.15, 0)])
def test_celsius(celsius, kelvin):
    assert convert(celsius, "degC", "K") == pytest.approx(kelvin)
    assert convert(kelvin, "K", "degC") == pytest.approx(celsius)


def test_different_dimensions():
    with pytest.raises(UnitError, match="length to mass"):
        convert(1, "m", "kg")


@pytest.mark.parametrize("symbol", ["parsec", "kft", "km2", ""])
def test_unknown_units(symbol):
    with pytest.raises(UnitError, match="unknown unit"):
        convert(1, symbol, "m")
