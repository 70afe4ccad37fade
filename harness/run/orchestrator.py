"""The pipeline of a run: per level a server, per task agent work and then grading, each with places of its own.

A task that waits for its tests holds no place among those that talk to the model, and the last gradings of one level
overlap with the next level's work. Only the event loop touches the store; agents and tests run in threads.
"""

import asyncio
import functools
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from harness.agent.limit import Limit
from harness.agent.trajectory import Step
from harness.config import LevelConfig, RunConfig
from harness.endpoint import measure_perplexity
from harness.errors import EndpointError, UserError
from harness.grading.evaluate import Evaluation
from harness.instances import Instance
from harness.run.outcome import Outcome
from harness.run.progress import Progress
from harness.run.record import Throughput, note_level
from harness.run.sandboxes import TrackedSandboxes
from harness.run.server import LevelServer, ServerLostError
from harness.run.store import Store, write_text
from harness.run.task import Task, Work, derive_seed, grade, is_doubtful, load_work, save_work, to_row, work
from harness.sandbox.base import SandboxFactory

T = TypeVar("T")

ATTEMPTS = 3
"""Starts of a step that the machine fails, before the task ends as `infra_error`."""

DOUBTFUL_ATTEMPTS = 2
"""Starts of a step that ended by the wall clock or without a trustworthy log: these cost their full time again."""

_TABLE_SECONDS = 30.0


@dataclass(frozen=True)
class _Tried(Generic[T]):
    """The last attempt's result, or the reason why there is none."""

    result: T | None
    attempts: int
    reason: str = ""


class Orchestrator:
    """Runs every open task of a run. `pauses` are the seconds before the second and third attempt of a step."""

    def __init__(
        self,
        config: RunConfig,
        instances: Sequence[Instance],
        store: Store,
        factory: SandboxFactory,
        progress: Progress,
        *,
        pauses: tuple[float, float] = (2.0, 15.0),
    ) -> None:
        self._config, self._instances, self._store = config, instances, store
        self._sandboxes = TrackedSandboxes(factory)
        self._progress, self._pauses = progress, pauses
        self._stop = threading.Event()
        self._agent_places = asyncio.Semaphore(config.agent_workers)
        self._grading_places = asyncio.Semaphore(config.grading_workers)
        self._threads = ThreadPoolExecutor(config.agent_workers + config.grading_workers, "sweq")
        self._tables_written = time.monotonic()

    async def run(self) -> None:
        """Do what is left to do. Raises `UserError` or `EndpointError` when the run cannot go on; may be cancelled."""
        try:
            async with asyncio.TaskGroup() as gradings:
                for level in self._config.levels:
                    await self._run_level(level, gradings)
        except BaseExceptionGroup as group:
            raise _find_cause(group) from group
        finally:
            self._stop.set()
            self._sandboxes.close_all()
            self._threads.shutdown(wait=False, cancel_futures=True)
            self._store.write_tables()

    async def _run_level(self, level: LevelConfig, gradings: asyncio.TaskGroup) -> None:
        tasks = [task for task in self._plan(level) if self._is_open(task)]
        unsolved = []
        for task in tasks:
            done = load_work(task)
            if done is None:
                unsolved.append(task)
            else:
                gradings.create_task(self._grade(task, done))
        if unsolved:
            await self._solve_level(level, unsolved, gradings)

    def _plan(self, level: LevelConfig) -> list[Task]:
        """Tasks of a level, whole repeats first, so that an early stop leaves whole repeats behind."""
        paths, seed = self._store.paths.level(level.name), self._config.sampling.seed
        return [
            Task(level, one, repeat, derive_seed(seed, one.instance_id, repeat), paths.task(one.instance_id, repeat))
            for repeat in range(self._config.repeats)
            for one in self._instances
        ]

    def _is_open(self, task: Task) -> bool:
        """Not done yet, or ended by the machine in an earlier session: the machine may have been mended since."""
        row = self._store.rows.get(task.key)
        return row is None or row.outcome == Outcome.INFRA_ERROR

    async def _solve_level(self, level: LevelConfig, tasks: list[Task], gradings: asyncio.TaskGroup) -> None:
        paths = self._store.paths.level(level.name)
        entry = self._store.record["levels"].setdefault(level.name, {})
        if self._config.perplexity_text is not None and entry.get("perplexity") is None:
            self._progress.note(f"{level.name}: measuring perplexity")
            entry["perplexity"] = await measure_perplexity(level, self._config, paths.log)
            self._store.save_record()
        self._progress.note(f"{level.name}: waiting for the server")
        server = LevelServer(level, self._config, paths, self._pause)
        try:
            note_level(entry, level, self._config, await server.start(), self._store.paths.record)
            self._store.save_record()
            self._progress.note(f"{level.name}: {len(tasks)} tasks to solve")
            throughput = Throughput(entry)
            async with asyncio.TaskGroup() as agents:
                for task in tasks:
                    agents.create_task(self._solve(task, server, throughput, gradings))
        finally:
            server.close()

    async def _solve(
        self, task: Task, server: LevelServer, throughput: Throughput, gradings: asyncio.TaskGroup
    ) -> None:
        async def attempt() -> Work:
            model = await server.ready()
            start = time.monotonic()
            done = await self._in_thread(work, task, self._config, model, self._sandboxes, self._on_step)
            throughput.note(done.completion_tokens, start, time.monotonic())
            return done

        tried = await self._try(task, self._agent_places, attempt, lambda done: done.limit != Limit.WALL_CLOCK)
        if tried.result is None:
            self._finish(task, Work(attempts=tried.attempts), None, tried.reason)
            return
        done = replace(tried.result, attempts=tried.attempts)
        save_work(task, done)
        self._store.save_record()
        gradings.create_task(self._grade(task, done))

    async def _grade(self, task: Task, done: Work) -> None:
        if done.limit == Limit.WALL_CLOCK:
            self._finish(task, done, None)
            return

        async def attempt() -> Evaluation:
            return await self._in_thread(grade, task, self._sandboxes, self._config.grading_timeout)

        tried = await self._try(task, self._grading_places, attempt, lambda evaluation: not is_doubtful(evaluation))
        attempts = done.attempts + tried.attempts - 1
        self._finish(task, replace(done, attempts=attempts), tried.result, tried.reason)

    async def _try(
        self,
        task: Task,
        places: asyncio.Semaphore,
        attempt: Callable[[], Awaitable[T]],
        is_sound: Callable[[T], bool],
    ) -> _Tried[T]:
        """Attempt a step until it is sound; a pause between two attempts holds no place."""
        tried: _Tried[T] = _Tried(None, 0)
        for number in range(1, ATTEMPTS + 1):
            try:
                async with places:
                    result = await attempt()
                tried = _Tried(result, number)
                if is_sound(result) or number >= DOUBTFUL_ATTEMPTS:
                    return tried
                self._progress.note(f"{_name(task)}: attempt {number} ended in doubt, trying once more")
            except (UserError, ServerLostError):
                raise
            except Exception as error:
                tried = _Tried(None, number, f"{type(error).__name__}: {' '.join(str(error).split())}"[:500])
                write_text(task.paths.error, traceback.format_exc())
                self._progress.note(f"{_name(task)}: attempt {number} of {ATTEMPTS} failed: {tried.reason}")
            if number < ATTEMPTS:
                await asyncio.sleep(self._pauses[number - 1])
        return tried

    async def _in_thread(self, function: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, functools.partial(function, *arguments))

    def _pause(self, seconds: float) -> None:
        """Wait in a thread, no longer than until the run is stopped."""
        self._stop.wait(seconds)

    def _on_step(self, step: Step) -> None:
        if self._stop.is_set():
            raise EndpointError("the run was interrupted")
        self._progress.step(step.usage.completion_tokens)

    def _finish(self, task: Task, done: Work, evaluation: Evaluation | None, reason: str = "") -> None:
        row = to_row(self._store.record["run_id"], task, done, evaluation, reason)
        self._store.finish_task(row)
        self._progress.finish(row)
        if time.monotonic() - self._tables_written > _TABLE_SECONDS:
            self._store.write_tables()
            self._tables_written = time.monotonic()


def _find_cause(error: BaseException) -> BaseException:
    """The first plain exception in nested groups of them."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _name(task: Task) -> str:
    return f"{task.level.name} {task.instance.instance_id} #{task.repeat}"
