import pytest

from emitter import Emitter, ListenerError


@pytest.fixture
def events():
    return Emitter()


@pytest.fixture
def calls():
    return []


def test_emit_passes_arguments(events, calls):
    events.add("saved", lambda path, size=0: calls.append((path, size)))
    assert events.emit("saved", "a.txt", size=3) == 1
    assert calls == [("a.txt", 3)]


def test_event_without_listeners(events):
    assert events.emit("nobody") == 0


def test_order_of_priority(events, calls):
    for name, priority in [("low", -1), ("first", 0), ("high", 5), ("second", 0)]:
        events.add("go", lambda name=name: calls.append(name), priority)
    events.emit("go")
    assert calls == ["high", "first", "second", "low"]


def test_decorator_keeps_the_function(events, calls):
    @events.on("go")
    def listener():
        calls.append("called")

    listener()
    events.emit("go")
    assert calls == ["called", "called"]


def test_once(events, calls):
    events.once("go", lambda: calls.append("once"))
    assert [events.emit("go"), events.emit("go")] == [1, 0]
    assert calls == ["once"]


def test_remove(events):
    listener = events.add("go", print)
    assert events.remove(listener) is True
    assert events.remove(listener) is False
    assert events.listeners("go") == []


def test_failing_listener_does_not_stop_the_others(events, calls):
    def fail():
        raise RuntimeError("broken")

    events.add("go", fail)
    events.add("go", lambda: calls.append("after"))
    with pytest.raises(ListenerError, match="1 listener") as caught:
        events.emit("go")
    assert calls == ["after"]
    assert isinstance(caught.value.errors[0], RuntimeError)
