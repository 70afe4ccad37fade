import pytest

from statemachine import ANY, Definition


@pytest.fixture
def order():
    """An order that can be paid and shipped, and cancelled at any time."""
    definition = Definition("new")
    definition.add("new", "pay", "paid")
    definition.add("paid", "ship", "shipped")
    definition.add(ANY, "cancel", "cancelled")
    return definition
