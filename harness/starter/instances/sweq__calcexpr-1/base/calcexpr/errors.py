"""What can go wrong with an expression."""


class ExpressionError(ValueError):
    """The expression cannot be read or evaluated; `position` is the offset of the offending character, if known."""

    def __init__(self, message: str, position: int | None = None) -> None:
        super().__init__(message if position is None else f"{message} at position {position}")
        self.position = position
