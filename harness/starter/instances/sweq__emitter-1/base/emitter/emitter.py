"""Registering listeners, and calling them."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

from emitter.errors import ListenerError
from emitter.listener import Listener


class Emitter:
    """Calls the listeners of an event, highest priority first, otherwise in the order of their registration."""

    def __init__(self) -> None:
        self._listeners: defaultdict[str, list[Listener]] = defaultdict(list)

    def add(self, event: str, function: Callable[..., Any], priority: int = 0, once: bool = False) -> Listener:
        """Register `function`; the result is what `remove` takes."""
        listener = Listener(event, function, priority, once)
        waiting = self._listeners[event]
        position = sum(1 for other in waiting if other.priority >= priority)
        waiting.insert(position, listener)
        return listener

    def on(self, event: str, priority: int = 0) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Decorator: register the function and leave it as it is."""

        def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
            self.add(event, function, priority)
            return function

        return decorate

    def once(self, event: str, function: Callable[..., Any], priority: int = 0) -> Listener:
        """Register `function` for the next time the event is emitted only."""
        return self.add(event, function, priority, once=True)

    def remove(self, listener: Listener) -> bool:
        """Take the listener away; False when it is not registered (any more)."""
        waiting = self._listeners[listener.event]
        if listener not in waiting:
            return False
        waiting.remove(listener)
        return True

    def listeners(self, event: str) -> list[Listener]:
        """The listeners of `event`, in the order in which they are called."""
        return list(self._listeners[event])

    def emit(self, event: str, *args: Any, **kwargs: Any) -> int:
        """Call every listener of `event`; returns how many were called.

        A listener that raises does not keep the others from being called; `ListenerError` is raised after the last.
        """
        called = 0
        errors = []
        for listener in self._listeners[event]:
            called += 1
            try:
                listener.function(*args, **kwargs)
            except Exception as error:
                errors.append(error)
            if listener.once:
                self.remove(listener)
        if errors:
            raise ListenerError(event, errors)
        return called
