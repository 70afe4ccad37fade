"""Processes that make episodes, which a seed may hang or end: the others go on without that seed."""

import multiprocessing
import resource
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import count, islice
from pathlib import Path

from nano.data.episodes import Episode, make_episode

TASK = 32
"""Seeds whose episodes are made and handed over together."""
PATIENCE = 120.0
"""Seconds that training waits for the episodes of one task before it goes on without them."""
MEMORY = 2 << 30
"""Bytes of address space that a process may take beyond what its imports took: a seed wants some megabytes."""
_AHEAD = 3

Made = tuple[list[Episode], list[str]]
"""The episodes of some seeds, and what was said of those that gave none."""


def make_many(first: int, seeds: int, part: str) -> Made:
    """The episodes of so many seeds; a seed that fails, for want of memory too, is a reason in the second list."""
    episodes, reasons = [], []
    for seed in range(first, first + seeds):
        try:
            episodes.append(make_episode(seed, part))
        except Exception as error:  # one unlucky seed must not end a run of a GPU; `Failures` bounds their number
            reasons.append(f"{part} seed {seed}: {type(error).__name__}: {error}")
    return episodes, reasons


def limit_memory(extra: int) -> None:
    """Let this process map `extra` bytes beyond what it has mapped; where it asks for more, MemoryError is raised."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + extra
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _start(workers: int) -> ProcessPoolExecutor:
    spawn = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=spawn, initializer=limit_memory, initargs=(MEMORY,))


class Makers:
    """Makes episodes in `workers` processes, or with 0 in this one; close it to end them."""

    def __init__(self, workers: int, start: Callable[[int], Executor] = _start) -> None:
        self._workers, self._start = workers, start
        self._executor: Executor | None = start(workers) if workers else None

    def results(self, part: str, seed: int, end: int | None = None) -> Iterator[Made]:
        """What each task from `seed` on gives, in order, each of `TASK` seeds, without end or up to before `end`."""
        if self._executor is None:
            yield from (make_many(*task) for task in _tasks(part, seed, end))
            return
        tasks = _tasks(part, seed, end)
        waiting = deque((task, self._submit(*task)) for task in islice(tasks, self._workers * _AHEAD))
        while waiting:
            task, future = waiting.popleft()
            try:
                yield self._wait(future, *task)
            except BrokenProcessPool:
                unfinished = [task, *(each for each, _ in waiting)]
                waiting.clear()
                self._renew()
                for each in unfinished:
                    yield self._make_singly(*each)
            room = self._workers * _AHEAD - len(waiting)
            waiting.extend((each, self._submit(*each)) for each in islice(tasks, room))

    def _submit(self, first: int, seeds: int, part: str) -> Future[Made]:
        assert self._executor is not None
        try:
            return self._executor.submit(make_many, first, seeds, part)
        except BrokenProcessPool as error:
            broken: Future[Made] = Future()
            broken.set_exception(error)
            return broken

    def _wait(self, future: Future[Made], first: int, seeds: int, part: str) -> Made:
        try:
            return future.result(PATIENCE)
        except TimeoutError:  # its process is lost to us, but the others go on
            return [], [f"{part} seeds from {first}: nothing after {PATIENCE:g} s"] * seeds

    def _make_singly(self, first: int, seeds: int, part: str) -> Made:
        """A task seed by seed, nothing else under way: so the seed that ends its process is known, and alone fails."""
        episodes: list[Episode] = []
        reasons: list[str] = []
        for seed in range(first, first + seeds):
            try:
                made = self._wait(self._submit(seed, 1, part), seed, 1, part)
            except BrokenProcessPool:
                self._renew()
                made = [], [f"{part} seed {seed}: it ended the process that made it"]
            episodes += made[0]
            reasons += made[1]
        return episodes, reasons

    def _renew(self) -> None:
        self.close()
        self._executor = self._start(self._workers)

    def close(self) -> None:
        """End the processes now: one that hangs would keep this program from ending."""
        if self._executor is None:
            return
        # Python 3.14 has `kill_workers` for this.
        workers = list((getattr(self._executor, "_processes", None) or {}).values())
        self._executor.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            worker.kill()


def _tasks(part: str, seed: int, end: int | None) -> Iterator[tuple[int, int, str]]:
    """Arguments of `make_many`, one task after another."""
    for first in count(seed, TASK):
        if end is not None and first >= end:
            return
        yield first, TASK if end is None else min(TASK, end - first), part
