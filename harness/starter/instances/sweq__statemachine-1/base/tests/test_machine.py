import pytest

from statemachine import ANY, Definition, Machine, NoTransition


def test_fire(order):
    machine = Machine(order)
    assert machine.fire("pay") == "paid"
    assert machine.state == "paid"


def test_event_that_leads_nowhere(order):
    machine = Machine(order)
    with pytest.raises(NoTransition, match="no transition for 'ship' in state 'new'"):
        machine.fire("ship")
    assert machine.state == "new"


def test_from_any_state(order):
    machine = Machine(order)
    machine.fire("pay")
    assert machine.fire("cancel") == "cancelled"


def test_named_source_goes_before_any(order):
    order.add("shipped", "cancel", "returned")
    machine = Machine(order)
    for event in ("pay", "ship", "cancel"):
        machine.fire(event)
    assert machine.state == "returned"


def test_can_and_events(order):
    machine = Machine(order)
    assert machine.can("pay")
    assert not machine.can("ship")
    assert machine.events() == ["pay", "cancel"]


def test_action_sees_the_context():
    definition = Definition("off")
    definition.add("off", "press", "on", action=lambda context: context.update(count=context["count"] + 1))
    machine = Machine(definition, count=1)
    machine.fire("press")
    assert machine.context == {"count": 2}


def test_failing_action_leaves_the_state():
    definition = Definition("off")
    definition.add("off", "press", "on", action=lambda context: context["missing"])
    machine = Machine(definition)
    with pytest.raises(KeyError):
        machine.fire("press")
    assert (machine.state, machine.history) == ("off", [])


def test_history(order):
    machine = Machine(order)
    machine.fire("pay")
    machine.fire("cancel")
    assert [(step.source, step.event) for step in machine.history] == [("new", "pay"), (ANY, "cancel")]
