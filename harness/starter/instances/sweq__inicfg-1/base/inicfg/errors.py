"""What can go wrong while reading."""


class ConfigError(ValueError):
    """A line that cannot be read; `line` counts from 1."""

    def __init__(self, message: str, line: int) -> None:
        super().__init__(f"line {line}: {message}")
        self.line = line
