"""The families by name: `KNOWN` ones are those of training, `FAR` ones training never sees."""

from harness.starter.generate.families import (
    arithmetic,
    containers,
    formatting,
    prices,
    puzzles,
    sequences,
    stores,
    text,
)
from harness.starter.generate.family import Family

KNOWN: dict[str, Family] = {
    **arithmetic.FAMILIES,
    **prices.FAMILIES,
    **sequences.FAMILIES,
    **containers.FAMILIES,
    **stores.FAMILIES,
    **formatting.FAMILIES,
    **text.FAMILIES,
}
FAR: dict[str, Family] = dict(puzzles.FAMILIES)
