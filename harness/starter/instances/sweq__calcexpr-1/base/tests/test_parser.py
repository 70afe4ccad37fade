import pytest

from calcexpr import ExpressionError, parse
from calcexpr.nodes import Binary, Call, Name, Number


def test_subtraction_groups_to_the_left():
    assert parse("1-2-3") == Binary("-", Binary("-", Number(1), Number(2)), Number(3))


def test_call_without_arguments():
    assert parse("now()") == Call("now", ())


def test_call_with_arguments():
    assert parse("f(x, 1)") == Call("f", (Name("x"), Number(1)))


@pytest.mark.parametrize(
    ("source", "position"),
    [("1 + ", 3), ("(1", 2), ("1 2", 2), ("2 $ 3", 2), ("f(1,)", 4)],
    ids=["no-right-side", "open-parenthesis", "two-values", "unknown-character", "no-argument"],
)
def test_errors_say_where(source, position):
    with pytest.raises(ExpressionError) as caught:
        parse(source)
    assert caught.value.position == position
