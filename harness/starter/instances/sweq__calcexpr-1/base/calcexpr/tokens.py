"""From characters to tokens."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from calcexpr.errors import ExpressionError

_PATTERN = re.compile(
    r"\s*(?:(?P<number>\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+)"
    r"|(?P<name>[A-Za-z_]\w*)"
    r"|(?P<operator>\*\*|[-+*/%(),]))"
)


@dataclass(frozen=True)
class Token:
    """One word of an expression; `kind` is number, name, operator or end."""

    kind: str
    text: str
    position: int


def tokenize(source: str) -> Iterator[Token]:
    """The tokens of `source`, followed by one of kind `end`."""
    position = 0
    end = len(source.rstrip())
    while position < end:
        match = _PATTERN.match(source, position)
        if match is None:
            offset = position + len(source[position:]) - len(source[position:].lstrip())
            raise ExpressionError(f"unexpected character {source[offset]!r}", offset)
        kind = match.lastgroup or ""
        yield Token(kind, match.group(kind), match.start(kind))
        position = match.end()
    yield Token("end", "", end)
