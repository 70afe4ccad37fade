"""What a machine can do; several machines may share one definition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from statemachine.errors import DefinitionError

ANY = "*"
"""As the source of a transition: every state."""

Context = dict[str, Any]
Action = Callable[[Context], None]


@dataclass(frozen=True)
class Transition:
    """In state `source`, `event` leads to state `target`; `action` runs on the way."""

    source: str
    event: str
    target: str
    action: Action | None = None


class Definition:
    """An initial state and transitions. The states are those that they name."""

    def __init__(self, initial: str) -> None:
        self.initial = initial
        self.transitions: list[Transition] = []

    def add(self, source: str, event: str, target: str, action: Action | None = None) -> Transition:
        """Add a transition; raises `DefinitionError` when the event is taken in that state."""
        if target == ANY:
            raise DefinitionError("a transition needs one target, not any")
        if any((other.source, other.event) == (source, event) for other in self.transitions):
            raise DefinitionError(f"event {event!r} is already taken in state {source!r}")
        transition = Transition(source, event, target, action)
        self.transitions.append(transition)
        return transition

    def states(self) -> list[str]:
        """Every state, the initial one first, the others in the order in which they were named."""
        named = [self.initial]
        for transition in self.transitions:
            named += [transition.source, transition.target]
        return [state for state in dict.fromkeys(named) if state != ANY]

    def find(self, state: str, event: str) -> Transition | None:
        """The transition for `event` in `state`: one from that very state, or else one from any."""
        for source in (state, ANY):
            for transition in self.transitions:
                if (transition.source, transition.event) == (source, event):
                    return transition
        return None
