"""The first rank's view of the others: it starts them, tells them what it does, and notices when one is lost.

Whatever touches the device goes through here: `MirroredRunner`, `MirroredState` and `MirroredSwap` do a thing on this
rank and note it for the others, who do the same in the same order. Notes are sent with the next step, so that a step
costs one message a rank, of a few numbers a sequence.
"""

import contextlib
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import count
from multiprocessing import Pipe
from typing import Any
from weakref import WeakKeyDictionary, finalize

import torch
import torch.distributed as dist
from torch import Tensor

from engine.cache.delta_state import DeltaSnapshot, DeltaState
from engine.cache.swap import SwapImage, SwapSpace
from engine.config import EngineConfig
from engine.core.follower import Assignment, ChunkNews
from engine.core.runner import Runner
from engine.core.sequence import Chunk, SequenceState
from engine.errors import LostRankError, UserError
from engine.parallel.group import Group, TCPStore

GRACE_SECONDS = 5.0
"""How long a step may go on after a rank is lost; a collective of GPUs never ends by itself then."""


class Ranks:
    """Ranks 1 to N - 1 of a model, each a process of its own on this machine. One such set at a time in a process.

    UserError where they cannot be had; LostRankError, here or from what is mirrored, once one has ended.
    """

    def __init__(self, model: str, quant: str, config: EngineConfig) -> None:
        size = config.tensor_parallel_size
        _check_devices(config)
        self.group = Group(0, size)
        self.lost: LostRankError | None = None
        self._device = torch.device("cuda:0" if config.device == "cuda" else config.device)
        self._timeout = config.collective_timeout
        self._notes: list[tuple[Any, ...]] = []
        self._busy_since: float | None = None
        self._closed = False
        self._listeners: list[Callable[[LostRankError], None]] = []
        self._store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self._threads = torch.get_num_threads()
        if self._device.type == "cpu":
            torch.set_num_threads(max(1, self._threads // size))
        self._processes: list[_Process] = []
        for rank in range(1, size):
            place = f"cuda:{rank}" if self._device.type == "cuda" else config.device
            own = Assignment(model, quant, replace(config, device=place), rank, self._store.port)
            self._processes.append(_Process(own, torch.get_num_threads()))

    def open(self) -> None:
        """Wait until all have loaded their parts, and meet them; then every rank places its model."""
        for process in self._processes:
            process.await_loaded()
        self.group.open(self._device, self._store, self._timeout)
        for process in self._processes:
            threading.Thread(target=self._watch, args=(process,), daemon=True).start()
        threading.Thread(target=self._watch_steps, daemon=True).start()

    def close(self) -> None:
        """End the other ranks. Idempotent."""
        if self._closed:
            return
        self._closed = True
        for process in self._processes:
            process.end()
        self.group.close()
        torch.set_num_threads(self._threads)

    def when_lost(self, listener: Callable[[LostRankError], None]) -> None:
        """Have `listener` called, on some thread, when a rank is lost."""
        self._listeners.append(listener)

    def note(self, *command: Any) -> None:
        """Keep a command for the other ranks until the next step."""
        self._notes.append(command)

    def send(self) -> None:
        """Send what was noted."""
        if self.lost is not None:
            raise self.lost
        notes, self._notes = self._notes, []
        message = pickle.dumps(notes, protocol=pickle.HIGHEST_PROTOCOL)
        for process in self._processes:
            try:
                process.wire.send_bytes(message)
            except OSError as error:
                raise self._lose(process) from error

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """While the block runs, a lost rank or the timeout ends this process if nothing else does."""
        self._busy_since = time.monotonic()
        try:
            yield
        finally:
            self._busy_since = None

    def failure(self, error: Exception) -> LostRankError:
        """What a step's error means: the ranks may not have done the same, so none can go on."""
        time.sleep(0.2)  # a connection breaks a moment before its process is known to have ended
        ended = next((process for process in self._processes if process.has_ended), None)
        if ended is not None:
            return self._lose(ended)
        return LostRankError(f"a step of {self.group.size} ranks failed: {' '.join(str(error).split())[:300]}")

    def _lose(self, process: "_Process") -> LostRankError:
        if self.lost is None:
            self.lost = LostRankError(process.obituary())
            if not self._closed:
                for listener in self._listeners:
                    listener(self.lost)
        return self.lost

    def _watch(self, process: "_Process") -> None:
        process.wait()
        if self._closed:
            return
        error = self._lose(process)
        end = time.monotonic() + GRACE_SECONDS
        while time.monotonic() < end:
            time.sleep(0.05)
            if self._busy_since is None:
                return
        _die(error)

    def _watch_steps(self) -> None:
        while not self._closed:
            time.sleep(1.0)
            since = self._busy_since
            if since is not None and time.monotonic() - since > self._timeout + GRACE_SECONDS:
                _die(LostRankError(f"a step of {self.group.size} ranks took longer than {self._timeout:g} s"))


class _Process:
    """One follower's process and the connection to it."""

    def __init__(self, own: Assignment, threads: int) -> None:
        self.rank = own.rank
        self.wire, theirs = Pipe()
        held, self._lifeline = os.pipe()
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "NUMBA_NUM_THREADS": str(threads)}
        command = [sys.executable, "-m", "engine.core.follower", str(theirs.fileno()), str(held)]
        # A session of its own, so that Ctrl-C reaches the first rank alone, which then ends the others.
        self._process = subprocess.Popen(
            command, pass_fds=(theirs.fileno(), held), env=environment, start_new_session=True
        )
        theirs.close()
        os.close(held)
        self.wire.send(own)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def await_loaded(self) -> None:
        try:
            answer = self.wire.recv()
        except (EOFError, OSError):
            self.wait()
            raise LostRankError(self.obituary()) from None
        if isinstance(answer, UserError):
            raise answer
        if answer is not None:
            raise LostRankError(f"rank {self.rank} of the model failed: {answer}")

    def wait(self) -> None:
        self._process.wait()

    def obituary(self) -> str:
        """One line on how the process ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)
        said = ""
        with contextlib.suppress(EOFError, OSError):
            while self.wire.poll(0):
                said = f": {self.wire.recv()}"
        return f"rank {self.rank} of the model (process {self.pid}) ended with status {self._process.returncode}{said}"

    def end(self) -> None:
        self.wire.close()
        os.close(self._lifeline)  # ends it, whatever it does
        try:
            self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _check_devices(config: EngineConfig) -> None:
    size = config.tensor_parallel_size
    if config.device.startswith("cuda") and torch.cuda.device_count() < size:
        raise UserError(f"tensor_parallel_size {size} needs {size} GPUs; this machine has {torch.cuda.device_count()}")
    if dist.is_initialized():
        raise UserError("one model over several ranks at a time: close the other first")


def _die(error: LostRankError) -> None:
    """End this process at once with one line: its main thread waits for a collective that never ends."""
    print(f"sweq-engine: {error}", file=sys.stderr, flush=True)
    os._exit(1)


class MirroredRunner:
    """`Runner` on every rank at once."""

    def __init__(self, runner: Runner, ranks: Ranks) -> None:
        self._runner, self._ranks = runner, ranks
        self._numbers = count()
        self._known: WeakKeyDictionary[SequenceState, _Known] = WeakKeyDictionary()

    def run(self, chunks: Sequence[Chunk], *, every_row: bool = False) -> Tensor:
        """See `Runner.run`; LostRankError when it fails, since the ranks may have come to differ then."""
        self._ranks.note("run", [self._news(chunk) for chunk in chunks], every_row)
        try:
            self._ranks.send()
            return self._runner.run(chunks, every_row=every_row)
        except LostRankError:
            raise
        except Exception as error:
            raise self._ranks.failure(error) from error

    def _news(self, chunk: Chunk) -> ChunkNews:
        sequence, request = chunk.sequence, None
        known = self._known.get(sequence)
        if known is None:
            known = self._known[sequence] = _Known(next(self._numbers))
            request = sequence.request
            finalize(sequence, self._ranks.note, "forget", known.number)
        tokens = sequence.token_ids[known.tokens :]
        known.tokens = len(sequence.token_ids)
        changed = known.blocks is not sequence.blocks or known.cached_blocks != sequence.cached_blocks
        known.blocks, known.cached_blocks = sequence.blocks, sequence.cached_blocks
        return ChunkNews(
            number=known.number,
            request=request,
            index=sequence.index,
            new_tokens=tokens,
            blocks=sequence.blocks if changed else None,
            cached_blocks=sequence.cached_blocks,
            slot=sequence.slot,
            computed=sequence.computed,
            tokens=chunk.tokens,
        )


class _Known:
    """What the other ranks know of a sequence."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.tokens = self.cached_blocks = 0
        self.blocks: list[int] | None = None


class _Kept:
    """Something that the other ranks keep under a number until this object is gone."""

    def __init__(self, ranks: Ranks, number: int, drop: str) -> None:
        self.number = number
        finalize(self, ranks.note, drop, number)


class _MirroredSnapshot(DeltaSnapshot):
    """This rank's part of a snapshot, and the number of the others'."""

    def __init__(self, own: DeltaSnapshot, kept: _Kept, ranks: Ranks) -> None:
        super().__init__(own.window, own.recurrent)
        vars(self).update(kept=kept, ranks=ranks)

    def to_host(self) -> DeltaSnapshot:
        kept, ranks = vars(self)["kept"], vars(self)["ranks"]
        ranks.note("to_host", kept.number)
        return _MirroredSnapshot(super().to_host(), kept, ranks)

    @property
    def number(self) -> int:
        kept: _Kept = vars(self)["kept"]
        return kept.number


class MirroredState(DeltaState):
    """`DeltaState` on every rank at once, over the tensors of this rank's `state`."""

    def __init__(self, state: DeltaState, ranks: Ranks) -> None:
        vars(self).update(vars(state))
        self._ranks, self._numbers = ranks, count()

    def zero(self, slot: int) -> None:
        self._ranks.note("zero", slot)
        super().zero(slot)

    def copy(self, source: int, target: int) -> None:
        self._ranks.note("copy", source, target)
        super().copy(source, target)

    def save(self, slot: int) -> DeltaSnapshot:
        kept = _Kept(self._ranks, next(self._numbers), "drop")
        self._ranks.note("save", kept.number, slot)
        return _MirroredSnapshot(super().save(slot), kept, self._ranks)

    def load(self, slot: int, snapshot: DeltaSnapshot) -> None:
        assert isinstance(snapshot, _MirroredSnapshot)
        self._ranks.note("load", slot, snapshot.number)
        super().load(slot, snapshot)


class MirroredSwap(SwapSpace):
    """`SwapSpace` on every rank at once, in place of this rank's `space`, whose state is mirrored already."""

    def __init__(self, space: SwapSpace, ranks: Ranks) -> None:
        vars(self).update(vars(space))
        self._ranks, self._numbers = ranks, count()
        self._kept: WeakKeyDictionary[SwapImage, _Kept] = WeakKeyDictionary()

    def save(self, tokens: int, blocks: Sequence[int], slot: int | None) -> SwapImage | None:
        image = super().save(tokens, blocks, slot)
        if image is not None:
            kept = self._kept[image] = _Kept(self._ranks, next(self._numbers), "swap_drop")
            self._ranks.note("swap_out", kept.number, list(blocks))
        return image

    def load(self, image: SwapImage, blocks: Sequence[int], known: int, slot: int | None) -> None:
        self._ranks.note("swap_in", self._kept[image].number, list(blocks), known)
        super().load(image, blocks, known, slot)
