"""From chunks to logits: builds a step's index tensors and runs the decoder."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from engine.cache.tensors import CacheTensors
from engine.core.sequence import Chunk
from engine.model.batch import Batch
from engine.model.decoder import Decoder


def activation_dtype(quant: str, device: torch.device) -> torch.dtype:
    """The dtype between matmuls at level `quant`: float32 where exactness is the point, bfloat16 elsewhere.

    `f32` is the oracle's level. `as-stored` on CPU has block formats whose kernels work in float32. On CPU the decoder
    takes float32 for few rows at every level.
    """
    if quant == "f32" or (quant == "as-stored" and device.type == "cpu"):
        return torch.float32
    return torch.bfloat16


def cache_dtype(activation: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype of keys and values: float32 on CPU, whose fused attention is several times slower in bfloat16."""
    return torch.float32 if device.type == "cpu" else activation


class Graphs(Protocol):
    """Steps of certain shapes, captured."""

    def covers(self, chunks: Sequence[Chunk]) -> bool:
        """Whether these chunks are such a step."""
        ...

    def run(self, chunks: Sequence[Chunk]) -> Tensor:
        """Logits float32 [R, vocab], valid until the next run."""
        ...


class Runner:
    """Runs chunks of sequences that hold their blocks and state slots already, in a graph where one covers them."""

    def __init__(
        self, decoder: Decoder, cache: CacheTensors, device: torch.device, graphs: Sequence[Graphs] = ()
    ) -> None:
        self._decoder, self._cache, self._device, self._graphs = decoder, cache, device, graphs

    def run(self, chunks: Sequence[Chunk], *, every_row: bool = False) -> Tensor:
        """Logits float32 [R, vocab] of each chunk's `logit_rows`, or of all rows; valid until the next run."""
        for graphs in () if every_row else self._graphs:
            if graphs.covers(chunks):
                return graphs.run(chunks)
        return self._decoder.forward(self._batch(chunks, every_row), self._cache)

    def warm_up(self, tokens: int) -> None:
        """Compute a prefill of nobody's tokens kernel by kernel, so that its kernels are compiled before requests come.

        It writes to state slot 0, which is zeroed when it is taken.
        """
        rows = torch.arange(tokens, device=self._device)
        tables = torch.zeros(1, -(-tokens // self._cache.block_size), dtype=torch.int32, device=self._device)
        starts = torch.tensor([0, tokens], dtype=torch.int32, device=self._device)
        lens = (tokens,), (tokens,)
        batch = Batch(rows * 0, rows, rows * 0 - 1, tables, starts, rows[:1] * 0, rows[-1:], *lens)
        self._decoder.forward(batch, self._cache)

    def _batch(self, chunks: Sequence[Chunk], every_row: bool) -> Batch:
        size = self._cache.block_size
        tokens: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        starts, rows = [0], []
        for chunk in chunks:
            span = range(chunk.start, chunk.start + chunk.tokens)
            blocks = chunk.sequence.blocks
            tokens += chunk.token_ids
            positions += span
            slots += [blocks[at // size] * size + at % size for at in span]
            rows += [starts[-1] + row for row in chunk.logit_rows]
            starts.append(len(tokens))
        longest = max(len(chunk.sequence.blocks) for chunk in chunks)
        tables = [chunk.sequence.blocks + [0] * (longest - len(chunk.sequence.blocks)) for chunk in chunks]
        wanted = list(range(len(tokens))) if every_row else rows
        state_slots = [chunk.sequence.slot or 0 for chunk in chunks]
        flat = [block for table in tables for block in table]
        parts = self._tensors(tokens, positions, slots, flat, starts, state_slots, wanted)
        return Batch(
            token_ids=parts[0],
            positions=parts[1],
            slot_mapping=parts[2],
            block_tables=parts[3].view(len(chunks), longest).int(),
            query_starts=parts[4].int(),
            state_slots=parts[5],
            logit_rows=parts[6],
            query_lens=tuple(chunk.tokens for chunk in chunks),
            context_lens=tuple(chunk.start + chunk.tokens for chunk in chunks),
        )

    def _tensors(self, *lists: list[int]) -> tuple[Tensor, ...]:
        """Each list as int64 on the device, all sent in one transfer that the host does not wait for."""
        joined = torch.tensor([value for values in lists for value in values])
        if self._device.type == "cuda":
            joined = joined.pin_memory()
        return torch.split(joined.to(self._device, non_blocking=True), [len(values) for values in lists])
