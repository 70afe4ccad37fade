"""Decode steps as CUDA graphs: one graph per batch size, captured once, replayed over fixed buffers.

A step of single tokens launches hundreds of small kernels, and launching them takes the host longer than running them
takes the device. A graph launches them all at once. It reads its numbers from one buffer, filled by one transfer: the
width of the block tables; then token ids, positions, KV slots, state slots, context lengths and sources of `LARGEST`
rows each; then how each row is drawn (`sampler.wishes`, float64); then the tables, a row after the other. A batch goes
to the smallest graph that holds it; rows left over have slots of -1 and contexts of 0, which the kernels take for
nobody's.

Tokens are chosen in graphs of their own, one for each batch size and `sampler.Way`, which write them behind what is
sent. A row's source is the place in the buffer where its token id lies: among the fields when the host knows it, behind
all that is sent when a row of the last step was given it. So a step can be launched before the last one is read.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.cache.tensors import CacheTensors
from engine.core.sampler import NOT_NUMBERS, WISHES, Verdict, Way, choose, draw, is_always_decided, way, wishes
from engine.core.sequence import Chunk, SequenceState
from engine.kernels.ops import FusedKernels, fused
from engine.model.batch import Batch
from engine.model.decoder import Decoder
from engine.model.moe import SparseMoE

logger = logging.getLogger(__name__)

BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
LARGEST = BUCKETS[-1]
FIELDS = 6
FIRST = 2
"""Where the fields begin: after the width and one more, so that the float64 numbers behind them are aligned."""
DRAWS = FIRST + FIELDS * LARGEST
HEADER = DRAWS + 2 * WISHES * LARGEST
CHOSEN_TOGETHER = 32
"""Rows whose tokens are chosen at once: a few float64 copies of their logits lie in memory meanwhile."""
WARM_UPS = 2
"""Passes before a capture: the first compiles kernels, the next one finds what libraries set up on their second use."""


def decode_graphs(
    decoder: Decoder,
    cache: CacheTensors,
    device: torch.device,
    max_running: int,
    max_context: int,
    vocabulary: int | None = None,
) -> "DecodeGraphs | None":
    """Graphs for batches of up to `max_running`, or None where the device or its kernels cannot run graphs.

    With `vocabulary`, the tokens that may be chosen, steps can be launched ahead.
    """
    kernels = fused(decoder.kernels)
    if device.type != "cuda" or kernels is None:
        return None
    mixtures = [layer.mlp for layer in decoder.layers if isinstance(layer.mlp, SparseMoE)]
    most = min([kernels.CAPTURED_TOKENS, *(mixture.captured_tokens(decoder.dtype) for mixture in mixtures)])
    sizes = [size for size in BUCKETS if size <= most and size // 2 < max_running]
    return DecodeGraphs(decoder, kernels, cache, device, sizes, -(-max_context // cache.block_size), vocabulary)


class DecodeGraphs:
    """Captured decode steps of batches up to the largest of `sizes`, contexts of up to `max_blocks` blocks.

    With a `vocabulary` it is a `pipeline.Launcher` too.
    """

    def __init__(
        self,
        decoder: Decoder,
        kernels: FusedKernels,
        cache: CacheTensors,
        device: torch.device,
        sizes: Sequence[int],
        max_blocks: int,
        vocabulary: int | None = None,
    ) -> None:
        self._read_seconds, self._read_steps = 0.0, 0
        self._vocabulary = vocabulary
        self._decoder, self._kernels, self._cache = decoder, kernels, cache
        self._block_size = cache.block_size
        self._length = HEADER + max(sizes) * max_blocks
        self._host = torch.zeros(self._length, dtype=torch.int32, pin_memory=device.type == "cuda")
        self._numbers: NDArray[np.int32] = self._host.numpy()
        self._draws: NDArray[np.float64] = self._numbers[DRAWS:HEADER].view(np.float64).reshape(LARGEST, WISHES)
        self._sent = torch.zeros(self._length + 2 * LARGEST, dtype=torch.int32, device=device)
        self._chosen = self._sent[self._length :].view(2, LARGEST)
        self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._answers = [_Answer.on(device) for _ in range(2)]
        self._tables: WeakKeyDictionary[SequenceState, _Table] = WeakKeyDictionary()
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self._choices: dict[tuple[int, Way], torch.cuda.CUDAGraph] = {}
        self._fill([])
        self._send(HEADER)
        self._capture(sizes)

    def covers(self, chunks: Sequence[Chunk]) -> bool:
        """Whether these chunks are a decode step that a graph holds."""
        return self.holds(len(chunks)) and all(chunk.tokens == 1 and chunk.reaches_end for chunk in chunks)

    def run(self, chunks: Sequence[Chunk]) -> Tensor:
        """Logits float32 [R, vocab], valid until the next run."""
        self._send(self._fill([chunk.sequence for chunk in chunks]))
        graph, logits = self._graphs[self._size(len(chunks))]
        graph.replay()
        return logits[: len(chunks)]

    def holds(self, count: int) -> bool:
        """See `Launcher.holds`."""
        return count <= max(self._graphs)

    def is_decided(self, sequence: SequenceState) -> bool:
        """See `Launcher.is_decided`."""
        return is_always_decided(sequence.request.params)

    def device_time(self) -> tuple[float, int]:
        """See `Launcher.device_time`."""
        return self._read_seconds, self._read_steps

    def launch(self, sequences: Sequence[SequenceState], sources: Sequence[int] | None = None) -> "_Step":
        """See `Launcher.launch`. Of two steps launched in a row, the first must be read before a third is launched."""
        size, most = self._size(len(sequences)), max(way(sequence.request.params) for sequence in sequences)
        count = self._fill(sequences, sources)
        uniforms = [sequence.rng.random() if sequence.request.params.temperature > 0 else 0.0 for sequence in sequences]
        if most > Way.GREEDY:
            rows = [wishes(one.request.params, uniform) for one, uniform in zip(sequences, uniforms, strict=True)]
            self._draws[: len(rows)] = rows
        self._send(count)
        answer = self._answers[0]
        self._answers.reverse()
        graph, logits = self._graphs[size]
        answer.begun.record()
        graph.replay()
        self._choices[size, most].replay()
        answer.rows.copy_(self._chosen, non_blocking=True)
        answer.done.record()
        return _Step(list(sequences), uniforms, logits[:, : self._vocabulary], answer, self._note_seconds)

    def _note_seconds(self, seconds: float) -> None:
        self._read_seconds += seconds
        self._read_steps += 1

    def _size(self, count: int) -> int:
        """The smallest captured batch that holds `count` sequences."""
        return min(size for size in self._graphs if size >= count)

    def _fill(self, sequences: Sequence[SequenceState], sources: Sequence[int] | None = None) -> int:
        """Write a step's numbers into host memory; returns how many of them to send."""
        count, size = len(sequences), self._block_size
        self._copied.synchronize()
        fields = self._numbers[FIRST:DRAWS].reshape(FIELDS, LARGEST)
        fields[:2, count:], fields[2:4, count:], fields[4, count:] = 0, -1, 0
        fields[5] = FIRST + np.arange(LARGEST)
        if sources is not None:
            fields[5, :count] = self._length + np.array(sources)
        tables = [self._table(sequence) for sequence in sequences]
        width = max((len(table) for table in tables), default=0)
        self._numbers[0] = width
        for row, (sequence, table) in enumerate(zip(sequences, tables, strict=True)):
            start = sequence.computed
            token = sequence.token_ids[start] if sources is None else 0
            slot = -1 if sequence.slot is None else sequence.slot
            place = table[start // size] * size + start % size
            fields[:5, row] = (token, start, place, slot, start + 1)
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
            for most in Way if self._vocabulary is not None else ():
                logits = self._graphs[size][1][:, : self._vocabulary]
                self._choices[size, most] = capture_step(partial(self._choose, logits, most), pool, stream)[0]
        logger.info("captured decode steps of %s sequences", ", ".join(map(str, sorted(sizes))))

    def _step(self, size: int) -> Tensor:
        """The step as every size runs it, from the buffer to logits."""
        fields = self._sent[FIRST:DRAWS].view(FIELDS, LARGEST)[1:, :size]
        positions, slots, states, contexts, sources = fields.long().unbind(0)
        tokens = self._sent.index_select(0, sources).long()
        rows = torch.arange(size, device=self._sent.device)
        batch = Batch(tokens, positions, slots, rows[:0], rows, states, rows, (1,) * size, (1,) * size)
        plan = self._kernels.plan_singles(contexts.int(), self._sent[HEADER:], self._sent[:1])
        return self._decoder.forward(batch, self._cache, plan)

    @torch.inference_mode()
    def _choose(self, logits: Tensor, most: Way) -> Tensor:
        """Choose tokens for all rows of a size, from its logits to the places behind what is sent."""
        numbers = self._sent[DRAWS:HEADER].view(torch.float64).view(LARGEST, WISHES)
        together = len(logits) if most == Way.GREEDY else CHOSEN_TOGETHER
        for first in range(0, len(logits), together):
            rows = slice(first, min(first + together, len(logits)))
            for place, found in zip(self._chosen, choose(logits[rows], numbers[rows], most), strict=True):
                place[rows].copy_(found)
        return self._chosen


@dataclass(frozen=True)
class _Answer:
    """Where a launched step's tokens and verdicts, int32 [2, LARGEST], come back to, and when."""

    rows: Tensor
    begun: torch.cuda.Event
    done: torch.cuda.Event

    @classmethod
    def on(cls, device: torch.device) -> "_Answer":
        begun, done = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        return cls(torch.zeros(2, LARGEST, dtype=torch.int32, pin_memory=device.type == "cuda"), begun, done)


@dataclass(frozen=True)
class _Step:
    """A launched step; `logits` [size, vocabulary] hold until the next launch."""

    sequences: list[SequenceState]
    uniforms: list[float]
    logits: Tensor
    answer: _Answer
    note_seconds: Callable[[float], None]

    def read(self) -> list[int | Exception]:
        """See `Launched.read`."""
        self.answer.done.synchronize()
        self.note_seconds(self.answer.begun.elapsed_time(self.answer.done) / 1e3)
        tokens, verdicts = self.answer.rows[:, : len(self.sequences)].tolist()
        return [self._token(row, *found) for row, found in enumerate(zip(tokens, verdicts, strict=True))]

    def _token(self, row: int, token: int, verdict: int) -> int | Exception:
        if verdict == Verdict.UNDECIDED:
            return draw(self.logits[row : row + 1], [self.sequences[row].request.params], [self.uniforms[row]])[0]
        return ValueError(NOT_NUMBERS) if verdict == Verdict.UNKNOWN else token


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
