"""Decoding one step ahead: the host reads, appends and gives out a step's tokens while the device computes the next.

Policy. A step in which every sequence decodes one token under common settings (`is_common`) is launched and not waited
for. If the next step is known but for its tokens (`Scheduler.foresee`), it is launched too, and takes them on the
device from what the first one chose; only then are the first one's tokens read. So the device always has a step to do.
What may need more than another token of each sequence - a prefill, an admission, a preemption, settings that need the
host - is not launched ahead: the step in flight is read first, and the next is planned as if there were no pipeline.

Order. A step is committed (`Memory.commit`: blocks and snapshots for the prefix tree) before the next one is launched
and after it was launched itself. Its input tokens are known by then, and the device does things in the order in which
they are asked for: a snapshot is a copy of the state after that step and before the next. Between two calls the host
thus knows of every sequence what it would know without a pipeline; all that differs is that a step is in flight, for
which blocks were found already.

Waste. A sequence may turn out to have ended (a stop token or string, an abort, an error) when its next step is in
flight. That row is dropped: it is never committed, its token is never read, its blocks and slot are free at once. What
the row still writes, nobody reads. Its key and value go behind the sequence's last known token, into a block that is
not full and so not in the tree; who gets that block next writes a place before reading it, and is launched later. The
DeltaNet state in its slot moves on by a token that does not exist; but a slot is zeroed, or loaded from a snapshot,
when it is given to a sequence, and snapshots are copies: the answer's was taken before the row was launched. Only a
preemption saves a running sequence's state, and there is none while a step is in flight (`Scheduler.schedule` is not
called). Ends that are known beforehand, by `max_tokens`, are not launched.

A step that fails while it is launched ahead may have moved some layers' states: its sequences are `spoilt`, and whoever
drives the pipeline computes their states again. The random numbers of such a step are not drawn yet.

Models over several ranks have no pipeline: the other ranks are told each token by message, and do not choose any.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from engine.core.runner import Runner
from engine.core.sampler import sample
from engine.core.scheduler import Scheduler
from engine.core.sequence import Chunk, SequenceState

logger = logging.getLogger(__name__)

Tokens = list[int | Exception]
"""What a step chose for each sequence, or why there is no token."""


class Launched(Protocol):
    """A step that may be in flight."""

    def read(self) -> Tokens:
        """The step's tokens, as `sampler.sample` gives them; waits until it is done."""
        ...


class Launcher(Protocol):
    """What decodes one token of each sequence and chooses the next ones, without being waited for."""

    def holds(self, count: int) -> bool:
        """Whether a step of so many sequences can be launched."""
        ...

    def is_decided(self, sequence: SequenceState) -> bool:
        """Whether the sequence's token is chosen where it was computed; else the step must be read before another."""
        ...

    def device_time(self) -> tuple[float, int] | None:
        """Seconds that the device took for the steps that were read, and their number; None where it does not say."""
        ...

    def launch(self, sequences: Sequence[SequenceState], sources: Sequence[int] | None = None) -> Launched:
        """Compute the token after the first `computed` of each.

        With `sources` these are not known here, but chosen by the step launched last, in these rows of it.
        """
        ...


@dataclass(frozen=True)
class _Flight:
    sequences: list[SequenceState]
    launched: Launched


class Pipeline:
    """At most one step of decoding between its launch and the reading of its tokens."""

    def __init__(self, scheduler: Scheduler, launcher: Launcher) -> None:
        self._scheduler, self._launcher = scheduler, launcher
        self._flight: _Flight | None = None
        self._spoilt: list[SequenceState] = []

    def is_flying(self) -> bool:
        """Whether a step is in flight that someone waits for."""
        if self._flight is not None and not self._left(self._flight):
            self._flight = None
        return self._flight is not None

    def takes(self, chunks: Sequence[Chunk]) -> bool:
        """Whether a planned step can be launched."""
        return self._launcher.holds(len(chunks)) and all(
            chunk.tokens == 1 and chunk.reaches_end and is_common(chunk.sequence) for chunk in chunks
        )

    def launch(self, chunks: Sequence[Chunk]) -> None:
        """Launch a step that `takes` accepts while none is in flight; raises what the model raises."""
        sequences = [chunk.sequence for chunk in chunks]
        self._flight = _Flight(sequences, self._launcher.launch(sequences))

    def land(self) -> list[tuple[SequenceState, int | Exception]]:
        """Commit the step in flight, launch the next one if it can be foreseen, and read the first one's tokens."""
        flight = self._flight
        assert flight is not None, "land without a step in flight"
        left = self._left(flight)
        for sequence in left:
            self._scheduler.commit(Chunk(sequence, 1))
        self._flight = self._next(flight, left)
        wanted = set(left)
        tokens = zip(flight.sequences, flight.launched.read(), strict=True)
        return [(sequence, token) for sequence, token in tokens if sequence in wanted]

    def device_time(self) -> tuple[float, int] | None:
        """See `Launcher.device_time`."""
        return self._launcher.device_time()

    def take_spoilt(self) -> list[SequenceState]:
        """The running sequences whose states a failed launch may have moved; each is named once."""
        spoilt, self._spoilt = self._spoilt, []
        running = set(self._scheduler.running)
        return [sequence for sequence in spoilt if sequence in running]

    def _left(self, flight: _Flight) -> list[SequenceState]:
        """The sequences of a step that have not ended since it was launched."""
        running = set(self._scheduler.running)
        return [sequence for sequence in flight.sequences if sequence in running]

    def _next(self, flight: _Flight, left: list[SequenceState]) -> _Flight | None:
        if not all(self._launcher.is_decided(sequence) for sequence in left):
            return None
        sequences = self._scheduler.foresee(left)
        if not sequences:
            return None
        rows = {sequence: row for row, sequence in enumerate(flight.sequences)}
        try:
            return _Flight(sequences, self._launcher.launch(sequences, [rows[sequence] for sequence in sequences]))
        except Exception:
            logger.exception("a step of %d requests failed ahead; it is planned anew", len(sequences))
            self._spoilt = sequences
            return None


def is_common(sequence: SequenceState) -> bool:
    """Whether the sequence's next token follows from its row of logits and a few numbers alone."""
    return (
        sequence.penalties is None
        and sequence.matcher is None
        and sequence.request.params.logprobs is None
        and not sequence.scores_prompt
    )


@dataclass(frozen=True)
class _Foreseen(Chunk):
    """A token that is not among its sequence's yet."""

    token: int

    @property
    def token_ids(self) -> list[int]:
        return [self.token]

    @property
    def reaches_end(self) -> bool:
        return True


class PlainLauncher:
    """Steps through a `Runner` and the host's sampler, done when `launch` returns: what a CPU and the tests have."""

    def __init__(self, runner: Runner, vocabulary: int) -> None:
        self._runner, self._vocabulary = runner, vocabulary
        self._latest: Tokens = []

    def holds(self, count: int) -> bool:
        return True

    def is_decided(self, sequence: SequenceState) -> bool:
        return True

    def device_time(self) -> tuple[float, int] | None:
        return None

    def launch(self, sequences: Sequence[SequenceState], sources: Sequence[int] | None = None) -> Launched:
        chunks = [Chunk(sequence, 1) for sequence in sequences]
        if sources is not None:
            chosen = [self._latest[row] for row in sources]
            # A row without a token ends when it is read; until then any token does.
            tokens = [0 if isinstance(token, Exception) else token for token in chosen]
            chunks = [_Foreseen(sequence, 1, token) for sequence, token in zip(sequences, tokens, strict=True)]
        self._latest = sample(self._runner.run(chunks)[:, : self._vocabulary], sequences)
        return _Done(self._latest)


@dataclass(frozen=True)
class _Done:
    tokens: Tokens

    def read(self) -> Tokens:
        return self.tokens
