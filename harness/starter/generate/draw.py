"""Everything that chance decides, drawn from one seed; and which glued names belong to training."""

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import TypeVar

from harness.starter.generate.words import DATA_WORDS, PACKAGE_BACK, PACKAGE_FRONT, THINGS

T = TypeVar("T")
_SHARE = 6


@dataclass(frozen=True)
class Thing:
    """A noun in both numbers, such as `box` and `boxes`."""

    one: str
    many: str


def is_held_out(name: str) -> bool:
    """Whether a glued name is kept from training: about one in six, by its CRC-32, whatever the seed."""
    return zlib.crc32(name.lower().replace("_", "").encode()) % _SHARE == 0


class NoNameLeftError(Exception):
    """All names that these groups of words give are taken or held out."""


class Draw:
    """Choices made with `generator`.

    Without `held_out`, no glued name is a held-out one. With it, each is one wherever its groups have one.
    """

    def __init__(self, generator: random.Random, *, held_out: bool) -> None:
        self._generator = generator
        self._held_out = held_out
        self._nouns: set[str] = set()
        self.plain = generator.random() < 0.4
        self.glued: list[str] = []

    def pick(self, *options: T) -> T:
        """One of the options."""
        return self._generator.choice(options)

    def number(self, low: int, high: int) -> int:
        """An integer from `low` to `high`, both included."""
        return self._generator.randint(low, high)

    def numbers(self, count: int, low: int, high: int) -> list[int]:
        """`count` integers from `low` to `high`, which may repeat."""
        return [self._generator.randint(low, high) for _ in range(count)]

    def flip(self, chance: float = 0.5) -> bool:
        """True with this chance."""
        return self._generator.random() < chance

    def sample(self, options: Sequence[T], count: int) -> list[T]:
        """`count` different elements in random order."""
        return self._generator.sample(list(options), count)

    def shuffle(self, options: Sequence[T]) -> list[T]:
        """All elements in random order."""
        return self._generator.sample(list(options), len(options))

    def words(self, count: int) -> list[str]:
        """`count` different words for arguments."""
        return self._generator.sample(DATA_WORDS, count)

    def thing(self) -> Thing:
        """A noun that this draw has not given before."""
        while True:
            one, many = self._generator.choice(THINGS)
            if one not in self._nouns:
                self._nouns.add(one)
                return Thing(one, many)

    def glue(self, *groups: Sequence[str]) -> str:
        """A snake_case name of one word from each group."""
        return self._glue(groups, "_")

    def camel(self, *groups: Sequence[str]) -> str:
        """A CamelCase name of one word from each group."""
        return self._glue([[word.capitalize() for word in group] for group in groups], "")

    def package(self) -> str:
        """A package's name."""
        return self._glue((PACKAGE_FRONT, PACKAGE_BACK), "")

    def _glue(self, groups: Sequence[Sequence[str]], joint: str) -> str:
        names, held_out = _combine(tuple(map(tuple, groups)), joint)
        wanted = [name for name in (held_out if self._held_out else names) if name not in self.glued]
        if not wanted and self._held_out:
            wanted = [name for name in names if name not in self.glued]
        if not wanted:
            raise NoNameLeftError(groups)
        self.glued.append(self._generator.choice(wanted))
        return self.glued[-1]


@lru_cache(maxsize=4_096)
def _combine(groups: tuple[tuple[str, ...], ...], joint: str) -> tuple[list[str], list[str]]:
    """All names of one word from each group: those of training, and those held out."""
    names = list(dict.fromkeys(joint.join(words) for words in product(*groups)))
    held_out = [name for name in names if is_held_out(name)]
    return [name for name in names if name not in held_out], held_out
