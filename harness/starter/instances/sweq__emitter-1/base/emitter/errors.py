"""What can go wrong while events are delivered."""


class ListenerError(Exception):
    """Some listeners raised. `errors` holds what they raised, in the order of the calls."""

    def __init__(self, event: str, errors: list[Exception]) -> None:
        super().__init__(f"{len(errors)} listener(s) of {event!r} failed: {errors[0]!r}")
        self.event = event
        self.errors = errors
