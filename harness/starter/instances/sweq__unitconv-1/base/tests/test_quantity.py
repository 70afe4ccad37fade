import pytest

from unitconv import Registry, UnitError, parse


@pytest.mark.parametrize(
    ("text", "value", "symbol"),
    [("3.5 km", 3.5, "km"), ("12in", 12, "in"), (" 1e3 g ", 1000, "g"), ("20 degC", 20, "degC")],
    ids=["space", "no-space", "exponent", "temperature"],
)
def test_parse(text, value, symbol):
    quantity = parse(text)
    assert (quantity.value, quantity.unit.symbol) == (value, symbol)


@pytest.mark.parametrize("text", ["", "km", "3", "3 4 km", "three km"])
def test_not_a_quantity(text):
    with pytest.raises(UnitError, match="not a quantity"):
        parse(text)


def test_text():
    assert str(parse("72 in").to("m")) == "1.8288 m"


def test_own_registry():
    registry = Registry()
    registry.define("bit", "data", 1)
    registry.define("byte", "data", 8)
    assert parse("16 bit", registry).to("byte").value == 2
    assert registry.symbols("data") == ["bit", "byte"]
    with pytest.raises(UnitError, match="already defined"):
        registry.define("bit", "data", 1)
