import pytest

from statemachine import ANY, Definition, DefinitionError


def test_states(order):
    assert order.states() == ["new", "paid", "shipped", "cancelled"]


def test_event_is_taken(order):
    with pytest.raises(DefinitionError, match="'pay' is already taken in state 'new'"):
        order.add("new", "pay", "shipped")


def test_target_cannot_be_any():
    with pytest.raises(DefinitionError, match="one target"):
        Definition("a").add("a", "go", ANY)
