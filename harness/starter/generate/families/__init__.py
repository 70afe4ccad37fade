"""The families by name: `KNOWN` ones are those of training, `FAR` ones training never sees."""

from harness.starter.generate.families import (
    arithmetic,
    commands,
    containers,
    dates,
    formatting,
    machines,
    parsing,
    places,
    prices,
    puzzles,
    sequences,
    stores,
    text,
    wording,
)
from harness.starter.generate.family import Family

_THEMES = (
    arithmetic,
    commands,
    containers,
    dates,
    formatting,
    machines,
    parsing,
    prices,
    sequences,
    stores,
    text,
    wording,
)

KNOWN: dict[str, Family] = dict(sorted(pair for theme in _THEMES for pair in theme.FAMILIES.items()))
FAR: dict[str, Family] = dict(sorted({**puzzles.FAMILIES, **places.FAMILIES}.items()))
