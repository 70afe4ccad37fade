"""The numbers of a step that decodes some sequences and prefills others, in fixed places of one int32 buffer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from engine.core.sequence import Chunk
from engine.kernels.reference_delta import CHUNK

RUNS = 8
"""Most sequences that bring more than one token."""

Numbers = NDArray[np.int32]
AnyBuffer = TypeVar("AnyBuffer", Numbers, Tensor)


@dataclass(frozen=True)
class Layout:
    """Where a step's numbers lie: `singles` rows of single tokens, then `tokens` rows of runs.

    After the fields come block tables, as wide as the step's widest, a row after the other: those of the singles, then
    those of the runs. What is left over belongs to nobody: slots of -1, contexts of 0, runs and chunks of no tokens.
    """

    singles: int
    tokens: int
    max_blocks: int

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every field, in order."""
        return {
            "width": (1,),
            "singles": (5, self.singles),  # token, position, KV slot, state slot, context
            "rows": (3, self.tokens),  # token, position, KV slot
            "places": (self.tokens, 2),  # place within the run, run
            "runs": (RUNS, 3),  # first row, tokens, first chunk
            "states": (RUNS,),
            "contexts": (RUNS, 4),  # first row of the step, tokens, context, row of the tables
            "chunks": (self.chunks(self.tokens), 2),  # first row, tokens
            "logit_rows": (self.singles + RUNS,),
        }

    @staticmethod
    def chunks(tokens: int) -> int:
        """Most chunks of the delta rule that runs of so many tokens have."""
        return tokens // CHUNK + RUNS

    @property
    def header(self) -> int:
        """Numbers before the block tables."""
        return sum(int(np.prod(shape)) for shape in self.shapes.values())

    @property
    def length(self) -> int:
        return self.header + (self.singles + RUNS) * self.max_blocks

    def views(self, buffer: AnyBuffer) -> dict[str, AnyBuffer]:
        """Each field as a view of the buffer."""
        fields, start = {}, 0
        for name, shape in self.shapes.items():
            stop = start + int(np.prod(shape))
            fields[name] = buffer[start:stop].reshape(*shape)
            start = stop
        return fields

    def holds(self, chunks: Sequence[Chunk]) -> bool:
        """Whether the chunks are a step with a run that fits."""
        runs = [chunk.tokens for chunk in chunks if chunk.tokens > 1]
        if not 0 < len(runs) <= RUNS or len(chunks) - len(runs) > self.singles:
            return False
        return sum(runs) <= self.tokens and not any(chunk.sequence.scores_prompt for chunk in chunks)


def fill(buffer: Numbers, layout: Layout, chunks: Sequence[Chunk], block_size: int) -> int:
    """Write a step's numbers to `buffer` [layout.length]; returns how many of them there are."""
    fields = layout.views(buffer)
    clear(fields)
    width = max((len(chunk.sequence.blocks) for chunk in chunks), default=0)
    fields["width"][0] = width
    tables = buffer[layout.header : layout.header + (layout.singles + RUNS) * width].reshape(-1, width or 1)
    singles, runs, rows, chunk_count, ends = 0, 0, 0, 0, 0
    for chunk in chunks:
        sequence = chunk.sequence
        blocks = np.array(sequence.blocks, dtype=np.int32)
        state = 0 if sequence.slot is None else sequence.slot
        positions = np.arange(chunk.start, chunk.start + chunk.tokens, dtype=np.int32)
        slots = blocks[positions // block_size] * block_size + positions % block_size
        if chunk.tokens == 1:
            context = chunk.start + 1
            fields["singles"][:, singles] = sequence.token_ids[chunk.start], chunk.start, slots[0], state, context
            tables[singles, : len(blocks)] = blocks
            last = singles
            singles += 1
        else:
            stop = rows + chunk.tokens
            fields["rows"][:, rows:stop] = chunk.token_ids, positions, slots
            fields["places"][rows:stop, 0] = np.arange(chunk.tokens)
            fields["places"][rows:stop, 1] = runs
            fields["runs"][runs] = rows, chunk.tokens, chunk_count
            fields["states"][runs] = state
            table = layout.singles + runs
            fields["contexts"][runs] = layout.singles + rows, chunk.tokens, chunk.start + chunk.tokens, table
            tables[table, : len(blocks)] = blocks
            for at in range(0, chunk.tokens, CHUNK):
                fields["chunks"][chunk_count] = rows + at, min(CHUNK, chunk.tokens - at)
                chunk_count += 1
            last = layout.singles + stop - 1
            runs, rows = runs + 1, stop
        if chunk.reaches_end:
            fields["logit_rows"][ends] = last
            ends += 1
    return layout.header + (layout.singles + RUNS) * width


def clear(fields: Mapping[str, Numbers]) -> None:
    """Nobody's numbers everywhere."""
    for field in fields.values():
        field[...] = 0
    fields["singles"][2:4] = -1
    fields["rows"][2] = -1
