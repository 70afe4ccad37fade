"""A model for tests of the pipeline: quick, and suspicious of every key, value and state that it reads.

For each token it writes a fingerprint of all tokens so far into the token's block and into the sequence's state slot,
and finds those of the tokens before where they must be. Its logits follow from the fingerprint, so texts are right only
if every token was computed from its own past. `FakeRunner` has it from chunks, `FakeDecoder` from a graph's numbers.
"""

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.cache.tensors import CacheTensors
from engine.core import graphs, placement
from engine.core.sequence import Chunk
from engine.model.batch import Batch

MODULUS = 2**23 - 15
"""Fingerprints are numbers that float32 holds exactly; none is 0, which a new state is."""


def follow(past: int, token: int) -> int:
    return (past * 31_337 + token * 7_919 + 17) % (MODULUS - 1) + 1


class FakeDecoder:
    """One token of each row of a graph's batch; a row with a context of 0 is nobody's."""

    def __init__(self, vocabulary: int, cache: CacheTensors) -> None:
        self._vocabulary, self._size = vocabulary, cache.block_size
        first = next(iter(cache.kv.values())).keys
        self._keys = first.view(-1, *first.shape[2:])[:, 0, 0]
        self._states = next(iter(cache.delta.values())).recurrent if cache.delta else None

    def forward(self, batch: Batch, cache: CacheTensors, plan: Any) -> Tensor:
        contexts, tables, width = plan
        rows = zip(
            contexts.tolist(), batch.token_ids.tolist(), batch.slot_mapping.tolist(), batch.state_slots.tolist(),
            strict=True,
        )  # fmt: skip
        width = int(width)
        prints = []
        for row, (context, token, place, slot) in enumerate(rows):
            if not context:
                assert place == slot == -1
                prints.append(0)
                continue
            assert int(batch.positions[row]) == context - 1
            table = tables[row * width : (row + 1) * width].tolist()
            prints.append(self.compute(table, context - 1, [token], slot, place))
        return self.logits(prints)

    def compute(self, table: Sequence[int], start: int, tokens: Sequence[int], slot: int | None, place: int) -> int:
        """Compute `tokens` from position `start` on, the last of them at `place`; returns the last fingerprint."""
        past = int(self._keys[self._at(table, start - 1)]) if start else 0
        if self._states is not None:
            assert int(self._states[slot].view(-1)[0]) == past, "another state than that after the tokens before"
        for position, token in enumerate(tokens, start):
            past = follow(past, token)
            self._keys[self._at(table, position)] = past
        assert self._at(table, start + len(tokens) - 1) == place
        if self._states is not None:
            self._states[slot] = past
        return past

    def check(self, table: Sequence[int], tokens: Sequence[int]) -> None:
        """Whether the keys of `tokens` are where they must be."""
        past = 0
        found = self._keys[[self._at(table, position) for position in range(len(tokens))]].tolist()
        for token, seen in zip(tokens, found, strict=True):
            past = follow(past, token)
            assert int(seen) == past, "another key than the one of these tokens"

    def logits(self, prints: Sequence[int]) -> Tensor:
        rows = [torch.randn(self._vocabulary, generator=torch.Generator().manual_seed(one)) for one in prints]
        return torch.stack(rows) * 2

    def _at(self, table: Sequence[int], position: int) -> int:
        return table[position // self._size] * self._size + position % self._size


class FakeRunner:
    """Stands in for `Runner`."""

    def __init__(self, decoder: Any, cache: CacheTensors, device: torch.device, captured: Sequence[Any]) -> None:
        self._decoder = FakeDecoder(decoder.config.vocab_size, cache)
        self._captured = captured

    def run(self, chunks: Sequence[Chunk], *, every_row: bool = False) -> Tensor:
        for captured in () if every_row else self._captured:
            if captured.covers(chunks):
                return captured.run(chunks)  # type: ignore[no-any-return]
        prints = []
        for chunk in chunks:
            sequence, start = chunk.sequence, chunk.start
            self._decoder.check(sequence.blocks, sequence.token_ids[:start])
            for position, token in enumerate(chunk.token_ids, start):
                place = self._decoder._at(sequence.blocks, position)
                now = self._decoder.compute(sequence.blocks, position, [token], sequence.slot, place)
                if every_row or position - start in chunk.logit_rows:
                    prints.append(now)
        return self._decoder.logits(prints) if prints else torch.empty(0, self._decoder._vocabulary)


class Replay:
    """Stands in for a captured graph: what was captured is called again."""

    def __init__(self, compute: Callable[[], Tensor]) -> None:
        self._compute, self.result = compute, compute()

    def replay(self) -> None:
        found = self._compute()
        if found is not self.result:
            self.result.copy_(found)


def capture_step(step: Callable[[], Tensor], *_: object) -> tuple[Replay, Tensor]:
    replay = Replay(step)
    return replay, replay.result


class Event:
    def __init__(self, **_: bool) -> None:
        pass

    def record(self) -> None:
        pass

    synchronize = record

    def elapsed_time(self, _: "Event") -> float:
        return 1.0


class FakeKernels:
    def plan_singles(self, contexts: Tensor, tables: Tensor, width: Tensor) -> Any:
        return contexts, tables, width


def captured(
    decoder: Any, cache: CacheTensors, device: torch.device, running: int, context: int, vocabulary: int | None
) -> graphs.DecodeGraphs:
    """As `graphs.decode_graphs`, of the fake model."""
    sizes, fake = (1, 2, 4, 8), FakeDecoder(decoder.config.vocab_size, cache)
    blocks = -(-context // cache.block_size)
    return graphs.DecodeGraphs(fake, FakeKernels(), cache, device, sizes, blocks, vocabulary)  # type: ignore[arg-type]


@contextmanager
def fake_model(*, with_graphs: bool):  # type: ignore[no-untyped-def]
    """Engines opened and run meanwhile have the fake model, a grid of 8 tokens for snapshots, and few candidates."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("engine.core.sampler.CANDIDATES", 8)
        patch.setattr("engine.core.memory.STATE_GRID", 8)
        patch.setattr(placement, "Runner", FakeRunner)
        patch.setattr(placement, "mixed_graphs", lambda *_: None)
        patch.setattr(placement, "_eager_sizes", lambda _: [])
        patch.setattr(graphs, "capture_step", capture_step)
        for name in ("Event", "Stream", "graph_pool_handle"):
            patch.setattr(torch.cuda, name, Event)
        patch.setattr(placement, "decode_graphs", captured if with_graphs else lambda *_: None)
        yield
