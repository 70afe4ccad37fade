"""Decode steps as CUDA graphs: one graph per batch size, captured once, replayed over fixed buffers.

A step of single tokens launches hundreds of small kernels, and launching them takes the host longer than running them
takes the device. A graph launches them all at once. It reads its numbers from one buffer, filled by one transfer: the
width of the block tables; then token ids, positions, KV slots, state slots and context lengths of `LARGEST` rows each;
then the tables, a row after the other. A batch goes to the smallest graph that holds it; rows left over have slots of
-1 and contexts of 0, which the kernels take for nobody's.
"""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.cache.tensors import CacheTensors
from engine.core.sequence import Chunk, SequenceState
from engine.kernels.ops import FusedKernels, fused
from engine.model.batch import Batch
from engine.model.decoder import Decoder
from engine.model.moe import SparseMoE

logger = logging.getLogger(__name__)

BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
LARGEST = BUCKETS[-1]
FIELDS = 5
HEADER = 1 + FIELDS * LARGEST
WARM_UPS = 2
"""Passes before a capture: the first compiles kernels, the next one finds what libraries set up on their second use."""


def decode_graphs(
    decoder: Decoder, cache: CacheTensors, device: torch.device, max_running: int, max_context: int
) -> "DecodeGraphs | None":
    """Graphs for batches of up to `max_running`, or None where the device or its kernels cannot run graphs."""
    kernels = fused(decoder.kernels)
    if device.type != "cuda" or kernels is None:
        return None
    mixtures = [layer.mlp for layer in decoder.layers if isinstance(layer.mlp, SparseMoE)]
    most = min([kernels.CAPTURED_TOKENS, *(mixture.captured_tokens(decoder.dtype) for mixture in mixtures)])
    sizes = [size for size in BUCKETS if size <= most and size // 2 < max_running]
    return DecodeGraphs(decoder, kernels, cache, device, sizes, -(-max_context // cache.block_size))


class DecodeGraphs:
    """Captured decode steps of batches up to the largest of `sizes`, contexts of up to `max_blocks` blocks."""

    def __init__(
        self,
        decoder: Decoder,
        kernels: FusedKernels,
        cache: CacheTensors,
        device: torch.device,
        sizes: Sequence[int],
        max_blocks: int,
    ) -> None:
        self._decoder, self._kernels, self._cache = decoder, kernels, cache
        self._block_size = cache.block_size
        length = HEADER + max(sizes) * max_blocks
        self._host = torch.zeros(length, dtype=torch.int32, pin_memory=True)
        self._numbers: NDArray[np.int32] = self._host.numpy()
        self._sent = torch.zeros(length, dtype=torch.int32, device=device)
        self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._tables: WeakKeyDictionary[SequenceState, _Table] = WeakKeyDictionary()
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self._fill([])
        self._send(HEADER)
        self._capture(sizes)

    def covers(self, chunks: Sequence[Chunk]) -> bool:
        """Whether these chunks are a decode step that a graph holds."""
        return len(chunks) <= max(self._graphs) and all(chunk.tokens == 1 and chunk.reaches_end for chunk in chunks)

    def run(self, chunks: Sequence[Chunk]) -> Tensor:
        """Logits float32 [R, vocab], valid until the next run."""
        size = min(size for size in self._graphs if size >= len(chunks))
        self._send(self._fill(chunks))
        graph, logits = self._graphs[size]
        graph.replay()
        return logits[: len(chunks)]

    def _fill(self, chunks: Sequence[Chunk]) -> int:
        """Write a step's numbers into host memory; returns how many of them to send."""
        count, size = len(chunks), self._block_size
        self._copied.synchronize()
        fields = self._numbers[1:HEADER].reshape(FIELDS, LARGEST)
        fields[:2, count:], fields[2:4, count:], fields[4, count:] = 0, -1, 0
        tables = [self._table(chunk.sequence) for chunk in chunks]
        width = max((len(table) for table in tables), default=0)
        self._numbers[0] = width
        for row, (chunk, table) in enumerate(zip(chunks, tables, strict=True)):
            start, sequence = chunk.start, chunk.sequence
            slot = -1 if sequence.slot is None else sequence.slot
            place = table[start // size] * size + start % size
            fields[:, row] = (sequence.token_ids[start], start, place, slot, start + 1)
            first = HEADER + row * width
            self._numbers[first : first + len(table)] = table
        return HEADER + count * width

    def _table(self, sequence: SequenceState) -> NDArray[np.int32]:
        """The sequence's blocks; made anew when there are more of them or some were shared."""
        known = self._tables.get(sequence)
        if known is None or not known.is_of(sequence):
            known = self._tables[sequence] = _Table(sequence)
        return known.numbers

    def _send(self, count: int) -> None:
        self._sent[:count].copy_(self._host[:count], non_blocking=True)
        self._copied.record()

    def _capture(self, sizes: Sequence[int]) -> None:
        """Capture the largest first, so that the others find room in its memory."""
        pool = torch.cuda.graph_pool_handle()
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        for size in sorted(sizes, reverse=True):
            self._graphs[size] = capture_step(partial(self._step, size), pool, stream)
        logger.info("captured decode steps of %s sequences", ", ".join(map(str, sorted(sizes))))

    def _step(self, size: int) -> Tensor:
        """The step as every size runs it, from the buffer to logits."""
        fields = self._sent[1:HEADER].view(FIELDS, LARGEST)[:, :size]
        tokens, positions, slots, states, contexts = fields.long().unbind(0)
        rows = torch.arange(size, device=self._sent.device)
        batch = Batch(tokens, positions, slots, rows[:0], rows, states, rows, (1,) * size, (1,) * size)
        plan = self._kernels.plan_singles(contexts.int(), self._sent[HEADER:], self._sent[:1])
        return self._decoder.forward(batch, self._cache, plan)


def capture_step(
    step: Callable[[], Tensor], pool: Any, stream: torch.cuda.Stream
) -> tuple[torch.cuda.CUDAGraph, Tensor]:
    """A graph of what `step` does, in memory of `pool`, and the tensor that holds its result after each replay."""
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # NCCL's own thread may call the driver meanwhile: what other threads do is not part of the capture.
    with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
        result = step()
    return graph, result


class _Table:
    """A sequence's block table as an array, and what tells whether it still holds."""

    def __init__(self, sequence: SequenceState) -> None:
        self._blocks, self._shared = sequence.blocks, sequence.cached_blocks
        self.numbers: NDArray[np.int32] = np.array(sequence.blocks, dtype=np.int32)

    def is_of(self, sequence: SequenceState) -> bool:
        """Blocks are added by making a new list; one is exchanged in place only when it is shared."""
        return self._blocks is sequence.blocks and self._shared == sequence.cached_blocks
