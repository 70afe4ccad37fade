"""The families by name: `KNOWN` ones are those of training, `FAR` ones training never sees."""

from harness.starter.generate.families import arithmetic, containers, puzzles, text
from harness.starter.generate.family import Family

KNOWN: dict[str, Family] = {**arithmetic.FAMILIES, **containers.FAMILIES, **text.FAMILIES}
FAR: dict[str, Family] = dict(puzzles.FAMILIES)
