"""What can go wrong with state machines."""


class MachineError(Exception):
    """Anything that this package raises."""


class DefinitionError(MachineError):
    """A definition that makes no sense."""


class NoTransition(MachineError):
    """The event leads nowhere from the current state."""

    def __init__(self, state: str, event: str) -> None:
        super().__init__(f"no transition for {event!r} in state {state!r}")
        self.state = state
        self.event = event
