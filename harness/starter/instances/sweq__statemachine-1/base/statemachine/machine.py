"""A machine in some state."""

from __future__ import annotations

from typing import Any

from statemachine.definition import ANY, Definition, Transition
from statemachine.errors import NoTransition


class Machine:
    """Follows a definition. `context` is what its actions read and write."""

    def __init__(self, definition: Definition, **context: Any) -> None:
        self.definition = definition
        self.state = definition.initial
        self.context: dict[str, Any] = context
        self.history: list[Transition] = []

    def can(self, event: str) -> bool:
        """Whether `fire(event)` would lead anywhere now."""
        return self.definition.find(self.state, event) is not None

    def events(self) -> list[str]:
        """The events that lead somewhere now, in the order of their definition."""
        sources = (self.state, ANY)
        found = [transition.event for transition in self.definition.transitions if transition.source in sources]
        return list(dict.fromkeys(found))

    def fire(self, event: str) -> str:
        """Follow the transition for `event`; returns the new state.

        The state changes after the action, so that an action that raises leaves the machine where it is.
        Raises `NoTransition` when the event leads nowhere.
        """
        transition = self.definition.find(self.state, event)
        if transition is None:
            raise NoTransition(self.state, event)
        if transition.action is not None:
            transition.action(self.context)
        self.state = transition.target
        self.history.append(transition)
        return self.state
