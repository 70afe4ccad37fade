"""Which families and which kinds of bug belong to which part."""

import zlib

from harness.starter.generate.draw import Draw
from harness.starter.generate.families import FAR, KNOWN
from harness.starter.generate.family import Family

PARTS = ("train", "near", "mixed", "far")
_SHARE = 5


def is_held_pair(family: str, kind: str) -> bool:
    """Whether a known family with this kind of bug is kept from training: one pair in five, by CRC-32."""
    return zlib.crc32(f"{family}/{kind}".encode()) % _SHARE == 0


def takes_kind(part: str, family: str, kind: str) -> bool:
    """Whether instances of the part may have this kind of bug in this family."""
    return part == "far" or is_held_pair(family, kind) == (part == "mixed")


def choose_families(draw: Draw, part: str) -> list[tuple[str, Family]]:
    """Two or three different families by name; the bug goes into the first, which is a far one for part `far`."""
    first = draw.pick(*(FAR if part == "far" else KNOWN))
    rest = [name for name in KNOWN if name != first]
    names = [first, *draw.sample(rest, draw.pick(1, 1, 2))]
    return [(name, FAR.get(name) or KNOWN[name]) for name in names]
