import pytest

from statemachine import DefinitionError, Machine, load

LAMP = {
    "initial": "off",
    "transitions": [
        {"source": "off", "event": "press", "target": "on", "action": "count"},
        {"source": "on", "event": "press", "target": "off"},
    ],
}


def test_load():
    machine = Machine(load(LAMP, {"count": lambda context: context.update(pressed=True)}))
    assert machine.fire("press") == "on"
    assert machine.context == {"pressed": True}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"source": "a", "event": "go"}, "transition 1: key 'target' is missing"),
        ({"source": "a", "event": "go", "target": "b", "color": "red"}, "transition 1: unknown key 'color'"),
        ({"source": "a", "event": "go", "target": "b", "action": "run"}, "transition 1: unknown function 'run'"),
    ],
    ids=["missing", "unknown", "function"],
)
def test_wrong_transition(entry, message):
    with pytest.raises(DefinitionError, match=message):
        load({"initial": "a", "transitions": [entry]})


def test_initial_is_needed():
    with pytest.raises(DefinitionError, match="'initial'"):
        load({"transitions": []})
