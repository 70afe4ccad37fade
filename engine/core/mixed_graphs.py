"""Steps with short prefills as CUDA graphs: one graph per number of prompt tokens, captured once, padded to.

An agent's turn brings a few hundred new tokens while other conversations decode. Kernel by kernel, such a step takes
the host some thousand launches, several times longer than it takes the device, and everyone waits. Here it is laid out
in fixed places (`mixed_layout`), all its numbers in one buffer that is filled by one transfer, and the smallest graph
that has room for its prompt tokens runs it. Steps with more prompt tokens than the largest keep the device busy long
enough to be launched kernel by kernel.
"""

import logging
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from engine.cache.tensors import CacheTensors
from engine.core.graphs import capture_step
from engine.core.mixed_layout import Layout, Numbers, fill
from engine.core.sequence import Chunk
from engine.kernels.ops import FusedKernels, MixedNumbers, fused
from engine.model.batch import Batch
from engine.model.decoder import Decoder
from engine.model.moe import SparseMoE
from engine.model.step import StatePart

logger = logging.getLogger(__name__)

SIZES = (64, 128, 256, 384, 512, 640, 768, 896, 1024)
SINGLES = (16, 32)
"""Rows for single tokens: the fewest that hold all running sequences. Multiples of 16, for which kernels are compiled
to load more at once, like the sizes."""


def mixed_graphs(
    decoder: Decoder, cache: CacheTensors, device: torch.device, max_running: int, max_context: int
) -> "MixedGraphs | None":
    """Graphs for steps with prefills, or None where the device or its kernels cannot run graphs."""
    kernels = fused(decoder.kernels)
    if device.type != "cuda" or kernels is None:
        return None
    singles = next((count for count in SINGLES if count >= max_running), SINGLES[-1])
    layout = Layout(singles, SIZES[-1], -(-max_context // cache.block_size))
    mixtures = [layer.mlp for layer in decoder.layers if isinstance(layer.mlp, SparseMoE)]
    if any(mixture.captured_tokens(decoder.dtype) < singles + layout.tokens for mixture in mixtures):
        return None
    return MixedGraphs(decoder, kernels, cache, device, layout)


class MixedGraphs:
    """Captured steps of single tokens and runs."""

    def __init__(
        self, decoder: Decoder, kernels: FusedKernels, cache: CacheTensors, device: torch.device, layout: Layout
    ) -> None:
        self._decoder, self._kernels, self._cache, self._layout = decoder, kernels, cache, layout
        self._host = torch.zeros(layout.length, dtype=torch.int32, pin_memory=True)
        self._numbers: Numbers = self._host.numpy()
        self._sent = torch.zeros(layout.length, dtype=torch.int32, device=device)
        self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self._send([])
        self._capture()

    def covers(self, chunks: Sequence[Chunk]) -> bool:
        """Whether these chunks are a step that a graph holds."""
        return self._layout.holds(chunks)

    def run(self, chunks: Sequence[Chunk]) -> Tensor:
        """Logits float32 [R, vocab], valid until the next run."""
        tokens = sum(chunk.tokens for chunk in chunks if chunk.tokens > 1)
        graph, logits = self._graphs[min(size for size in SIZES if size >= tokens)]
        self._send(chunks)
        graph.replay()
        return logits[: sum(chunk.reaches_end for chunk in chunks)]

    def _send(self, chunks: Sequence[Chunk]) -> None:
        self._copied.synchronize()
        count = fill(self._numbers, self._layout, chunks, self._cache.block_size)
        self._sent[:count].copy_(self._host[:count], non_blocking=True)
        self._copied.record()

    def _capture(self) -> None:
        """Capture the largest first, so that the others find room in its memory."""
        pool = torch.cuda.graph_pool_handle()
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        for size in sorted(SIZES, reverse=True):
            self._graphs[size] = capture_step(partial(self._step, size), pool, stream)
        logger.info("captured steps of up to %s prompt tokens", ", ".join(map(str, SIZES)))

    def _step(self, size: int) -> Tensor:
        """The step as every size runs it, from the buffer to logits."""
        count, fields = self._layout.singles, self._layout.views(self._sent)
        singles, run_states = fields["singles"], fields["states"].long()
        tokens, positions, slots = torch.cat((singles[:3], fields["rows"][:, :size]), 1).long().unbind(0)
        numbers = MixedNumbers(
            single_contexts=singles[4],
            run_contexts=fields["contexts"],
            tables=self._sent[self._layout.header :],
            width=fields["width"],
            tokens=size,
            state_slots=run_states,
            runs=fields["runs"],
            chunks=fields["chunks"][: self._layout.chunks(size)],
            places=fields["places"][:size],
        )
        attention, plan = self._kernels.plan_mixed(numbers)
        states = singles[3].long()
        parts = StatePart(slice(0, count), states), StatePart(slice(count, count + size), run_states, plan)
        rows = fields["logit_rows"].long()
        batch = Batch(tokens, positions, slots, rows[:0], rows[:0], rows[:0], rows, (), ())
        return self._decoder.forward(batch, self._cache, attention, parts if self._cache.delta else ())
