"""The pipeline of a run: images, agent work and grading, each with places of its own, at the levels whose turn it is.

A task that waits for its image or its tests holds no place among those that talk to the models, and the last gradings
of one turn overlap with the next turn's work. Only the event loop touches the store; what takes time runs elsewhere.
"""

import asyncio
import functools
import time
import traceback
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from harness.agent.limit import Limit
from harness.agent.profiles import told_tools
from harness.config import LevelConfig, RunConfig
from harness.endpoint import measure_quality
from harness.errors import EndpointError
from harness.grading.evaluate import Evaluation
from harness.instances import Instance
from harness.run.attempts import Tried, try_repeatedly
from harness.run.executor import Executor
from harness.run.images import HeldImage, Images
from harness.run.outcome import Outcome
from harness.run.plan import Turn, plan_turns
from harness.run.progress import Progress
from harness.run.quality import note_calls, note_joules, read_joules, write_transcript
from harness.run.record import Throughput, note_level
from harness.run.server import LevelServer
from harness.run.store import Store, write_text
from harness.run.task import Task, Work, derive_seed, is_doubtful, load_work, save_work, to_row
from harness.sandbox.base import ImageSupply

T = TypeVar("T")

_TABLE_SECONDS = 30.0
_IMAGE_PLACES = 4
"""Tasks that wait for an image at once, ahead of those at work."""


class Orchestrator:
    """Runs every open task of a run. `pauses` are the seconds before the second and third attempt of a step."""

    def __init__(
        self,
        config: RunConfig,
        instances: Sequence[Instance],
        store: Store,
        executor: Executor,
        progress: Progress,
        *,
        supply: ImageSupply | None = None,
        pauses: tuple[float, float] = (2.0, 15.0),
    ) -> None:
        self._config, self._store, self._executor = config, store, executor
        self._instances = supply.order(instances) if supply is not None else list(instances)
        self._progress, self._pauses = progress, pauses
        self._images = Images(supply, _IMAGE_PLACES)
        self._servers: dict[str, LevelServer] = {}
        self._throughput: dict[str, Throughput] = {}
        # An image is held from before the agent's work until after the grading, so few may be ahead of their work.
        self._agents_ahead = asyncio.Semaphore(config.agent_workers + _IMAGE_PLACES)
        self._gradings_ahead = asyncio.Semaphore(config.grading_workers + _IMAGE_PLACES)
        self._agent_places = asyncio.Semaphore(config.agent_workers)
        self._grading_places = asyncio.Semaphore(config.grading_workers)
        self._tables_written = time.monotonic()

    async def run(self) -> None:
        """Do what is left to do. Raises `UserError` or `EndpointError` when the run cannot go on; may be cancelled."""
        try:
            async with asyncio.TaskGroup() as gradings:
                for turn in plan_turns(self._config, self._instances):
                    await self._take_turn(turn, gradings)
                self._serve_only(())
                await self._measure_transcripts()
        except BaseExceptionGroup as group:
            raise _find_cause(group) from group
        finally:
            self._executor.close()
            self._images.close()
            self._serve_only(())
            self._store.write_tables()

    async def _take_turn(self, turn: Turn, gradings: asyncio.TaskGroup) -> None:
        tasks = [task for task in self._list_tasks(turn) if self._is_open(task)]
        self._images.prefetch([task.instance for task in tasks])
        unsolved = []
        for task in tasks:
            done = load_work(task)
            if done is None:
                unsolved.append(task)
            else:
                gradings.create_task(self._regrade(task, done))
        if unsolved:
            await self._serve(turn.levels)
            self._progress.note(f"{', '.join(level.name for level in turn.levels)}: {len(unsolved)} tasks to solve")
            joules = read_joules()
            async with asyncio.TaskGroup() as agents:
                for task in unsolved:
                    agents.create_task(self._solve(task, gradings))
            if len(turn.levels) == 1:
                # With several levels at work, nothing says whose energy it was.
                note_joules(self._store.record["levels"][turn.levels[0].name], joules)

    def _list_tasks(self, turn: Turn) -> list[Task]:
        """Tasks in the order in which they get places: all levels of one instance before the next instance."""
        seed = self._config.sampling.seed
        return [
            Task(
                level,
                one,
                repeat,
                derive_seed(seed, one.instance_id, repeat),
                self._store.paths.level(level.name).task(one.instance_id, repeat),
            )
            for repeat, one in turn.work
            for level in turn.levels
        ]

    def _is_open(self, task: Task) -> bool:
        """Not done yet, or ended by the machine in an earlier session: the machine may have been mended since."""
        row = self._store.rows.get(task.key)
        return row is None or row.outcome == Outcome.INFRA_ERROR

    async def _serve(self, levels: tuple[LevelConfig, ...]) -> None:
        """Have the servers of `levels` up, and no others; those that are up already stay."""
        self._serve_only(levels)
        for level in levels:
            if level.name not in self._servers:
                await self._open_level(level)

    def _serve_only(self, levels: tuple[LevelConfig, ...]) -> None:
        for name in self._servers.keys() - {level.name for level in levels}:
            self._servers.pop(name).close()

    async def _open_level(self, level: LevelConfig) -> None:
        paths = self._store.paths.level(level.name)
        entry = self._store.record["levels"].setdefault(level.name, {})
        if self._config.perplexity_text is not None and entry.get("perplexity") is None:
            self._progress.note(f"{level.name}: measuring perplexity")
            reference = self._find_reference(level)
            text = self._config.perplexity_text
            entry.update(await measure_quality(level, self._config, paths.log, text, reference))
            self._store.save_record()
        self._progress.note(f"{level.name}: waiting for the server")
        server = self._servers[level.name] = LevelServer(level, self._config, paths, self._progress.note)
        note_level(entry, level, self._config, await server.start(), self._store.paths.record)
        self._store.save_record()
        if level.name not in self._throughput:
            self._throughput[level.name] = Throughput(entry)

    def _find_reference(self, level: LevelConfig) -> LevelConfig | None:
        """The level to measure the divergence of `level` from, None where none is asked for."""
        config = self._config
        baseline = next(one for one in config.levels if one.name == (config.baseline or config.levels[0].name))
        return baseline if config.divergence and level != baseline else None

    async def _measure_transcripts(self) -> None:
        """Score what the baseline's agents read and wrote at every level, once all of them are done."""
        config = self._config
        if not config.divergence:
            return
        baseline = self._store.paths.level(config.baseline or config.levels[0].name)
        tools = told_tools(config.agent.profile)
        text = baseline.root / "transcripts.jsonl"
        for level in config.levels:
            entry = self._store.record["levels"][level.name]
            if entry.get("transcripts") is None and write_transcript(baseline, text, tools):
                self._progress.note(f"{level.name}: measuring the divergence on agents' transcripts")
                log, reference = self._store.paths.level(level.name).log, self._find_reference(level)
                entry["transcripts"] = await measure_quality(level, config, log, text, reference)
                self._store.save_record()

    async def _solve(self, task: Task, gradings: asyncio.TaskGroup) -> None:
        async with self._agents_ahead:
            image = await self._hold(task, Work())
            if image is None:
                return
            try:
                done = await self._work(task)
            except BaseException:
                image.release()
                raise
        if done is None:
            image.release()
        else:
            gradings.create_task(self._grade(task, done, image))

    async def _regrade(self, task: Task, done: Work) -> None:
        """Grade what an earlier session solved."""
        async with self._gradings_ahead:
            image = await self._hold(task, done)
            if image is not None:
                await self._grade(task, done, image)

    async def _hold(self, task: Task, done: Work) -> HeldImage | None:
        """The task's image, or None where it cannot be brought, and the task has ended by that."""
        tried = await self._try(
            task, self._images.places, functools.partial(self._images.hold, task.instance), lambda image: True
        )
        if tried.result is None:
            self._finish(task, replace(done, attempts=done.attempts + tried.attempts - 1), None, tried.reason)
        return tried.result

    async def _work(self, task: Task) -> Work | None:
        """The agent's step, on disk; None where the machine kept it from happening, and the task has ended by that."""
        level = task.level.name
        server, throughput = self._servers[level], self._throughput[level]

        async def attempt() -> Work:
            served = await server.ready()
            start = time.monotonic()
            with self._progress.at_work(level, "agents"):
                try:
                    on_usage = functools.partial(self._progress.spend, level)
                    done = await self._executor.work(task, served, on_usage)
                except EndpointError as error:
                    raise server.blame(served, error) from error
            server.note_done()
            throughput.note(done.completion_tokens, start, time.monotonic())
            return done

        tried = await self._try(task, self._agent_places, attempt, lambda done: done.limit != Limit.WALL_CLOCK)
        if tried.result is None:
            self._finish(task, Work(attempts=tried.attempts), None, tried.reason)
            return None
        done = replace(tried.result, attempts=tried.attempts)
        save_work(task, done)
        note_calls(self._store.record["levels"][level], task.paths.trajectory)
        self._store.save_record()
        return done

    async def _grade(self, task: Task, done: Work, image: HeldImage) -> None:
        try:
            if done.limit == Limit.WALL_CLOCK:
                self._finish(task, done, None)
                return

            async def attempt() -> Evaluation:
                with self._progress.at_work(task.level.name, "tests"):
                    return await self._executor.grade(task)

            tried = await self._try(task, self._grading_places, attempt, lambda found: not is_doubtful(found))
            attempts = done.attempts + tried.attempts - 1
            self._finish(task, replace(done, attempts=attempts), tried.result, tried.reason)
        finally:
            image.release()

    async def _try(
        self, task: Task, places: asyncio.Semaphore, attempt: Callable[[], Awaitable[T]], is_sound: Callable[[T], bool]
    ) -> Tried[T]:
        def report(said: str, error: Exception | None) -> None:
            if error is not None:
                write_text(task.paths.error, "".join(traceback.format_exception(error)))
            self._progress.note(f"{_name(task)}: {said}")

        return await try_repeatedly(attempt, is_sound, places=places, pauses=self._pauses, report=report)

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
