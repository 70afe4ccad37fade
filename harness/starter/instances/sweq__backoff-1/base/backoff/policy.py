"""How often to try, and how long to wait in between."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Policy:
    """Exponential back-off with jitter.

    attempts: calls in all, the first one included
    base: seconds before the second attempt
    factor: each further pause is this many times the one before
    max_delay: no pause is longer than this many seconds
    jitter: each pause is lengthened by a random share of itself, up to this fraction
    """

    attempts: int = 3
    base: float = 1.0
    factor: float = 2.0
    max_delay: float = 60.0
    jitter: float = 0.0
    rng: random.Random = field(default_factory=random.Random, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError("attempts must be at least 1")
        if self.base < 0 or self.max_delay < 0:
            raise ValueError("delays must not be negative")
        if self.factor < 1:
            raise ValueError("factor must be at least 1")
        if not 0 <= self.jitter <= 1:
            raise ValueError("jitter must be between 0 and 1")

    def delays(self) -> Iterator[float]:
        """The pauses between the attempts, in seconds: one fewer than there are attempts."""
        for pause in range(self.attempts - 1):
            delay = self.base * self.factor**pause
            spread = 1 + self.jitter * self.rng.random()
            yield min(delay, self.max_delay) * spread

    def longest(self) -> float:
        """Upper bound of the time spent waiting, in seconds, when every attempt fails."""
        pauses = (self.base * self.factor**pause * (1 + self.jitter) for pause in range(self.attempts - 1))
        return sum(min(pause, self.max_delay) for pause in pauses)
