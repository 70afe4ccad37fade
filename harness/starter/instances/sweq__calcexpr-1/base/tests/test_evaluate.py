import pytest

from calcexpr import ExpressionError, evaluate


@pytest.mark.parametrize(
    ("source", "value"),
    [("1+2*3", 7), ("(1+2)*3", 9), ("7-4-2", 1), ("2*-3", -6), ("--4", 4), ("10/4", 2.5), ("7%4*2", 6)],
)
def test_operators(source, value):
    assert evaluate(source) == value


@pytest.mark.parametrize(("source", "value"), [("2**3", 8), ("2*3**2", 18), ("-2**2", -4), ("(-2)**2", 4)])
def test_power(source, value):
    assert evaluate(source) == value


def test_names():
    assert evaluate("2 * (width + 1)", {"width": 3}) == 8


def test_functions():
    assert evaluate("max(1, abs(-5), 2) + sqrt(16)") == 9


def test_number_forms():
    assert evaluate("1.5e2 + .5") == 150.5


@pytest.mark.parametrize("source", ["1/0", "sqrt(-1)", "nothing", "f(1)", "abs()"])
def test_evaluation_errors(source):
    with pytest.raises(ExpressionError):
        evaluate(source)
