"""GGUF blocks in the order that a GPU's kernels read: whole words of codes, then what is left of them, then scales.

A unit is 256 columns, of Q8_0 128: 32 little-endian words. Each 32 columns with a scale of their own have W words one
after another, 4 or, of Q8_0, 8; word j of them holds the codes of columns j, W + j, 2·W + j, ..., the first in the
lowest bits. So a thread that loads 16 bytes has one scale, or two, for all of them, and a vector of activations beside
each bit position. A row is

- the code words of all its units;
- the codes' upper bits of all units, for word i of a unit those of its codes in their order: of Q5_K byte i, a bit for
  each; of Q6_K pair of bytes i, two bits for each;
- the scales of all units, two bytes for each 32 columns: of Q8_0 and Q4_0 a float16; of Q4_K and Q5_K scale and
  minimum; of Q6_K the signed scales of 16 columns each. Those of the unit's first and second half by turns, so that a
  word has the same place in both. Then, but for Q8_0 and Q4_0, the float16 d and dmin (Q6_K: 0);
- zeros up to a multiple of 16 bytes.

Nothing is rounded and the way back is exact. Q4_K, Q5_K and Q6_K take 2.8, 2.3 and 1.0% more than in a file, for their
scales of 6 bits are spread to bytes, and short rows up to 3% more.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

CODE_BYTES = 128
"""Bytes of code words in a unit."""

ALIGNED = 16
"""Bytes that a thread loads at once."""


@dataclass(frozen=True)
class Words:
    """How a unit of a block type lies in words: columns, and bytes of upper bits and of scales."""

    columns: int
    upper: int
    scales: int

    @property
    def bytes(self) -> int:
        return CODE_BYTES + self.upper + self.scales

    def row_bytes(self, columns: int) -> int:
        """Bytes of a row of `columns` weights, a multiple of the unit's."""
        size = columns // self.columns * self.bytes
        return size + -size % ALIGNED


WORDS: Mapping[str, Words] = MappingProxyType(
    {
        "Q4_0": Words(256, 0, 16),
        "Q8_0": Words(128, 0, 8),
        "Q4_K": Words(256, 0, 20),
        "Q5_K": Words(256, 32, 20),
        "Q6_K": Words(256, 64, 20),
    }
)
