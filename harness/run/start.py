"""From a configuration to a finished run directory."""

import asyncio
import signal
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.config import RunConfig
from harness.errors import UserError
from harness.instances import Instance, load_instances
from harness.run.executor import Executor, LocalExecutor
from harness.run.orchestrator import Orchestrator
from harness.run.outcome import Outcome
from harness.run.paths import RunPaths
from harness.run.plan import count_levels_at_once
from harness.run.progress import Progress
from harness.run.record import make_record, name_run, now
from harness.run.store import Store, lock
from harness.run.tally import Tally
from harness.sandbox.base import SandboxFactory
from harness.sandbox.images.choice import make_supply
from harness.sandbox.select import choose_for


@dataclass(frozen=True)
class Finished:
    """How a run stands: `total` tasks, each with a row. `fresh` counts those that this process finished."""

    paths: RunPaths
    total: int
    fresh: int
    infra_errors: int


class RunInterruptedError(Exception):
    """Somebody stopped the run (Ctrl-C, SIGTERM); all finished steps are on disk. The message says how to go on."""


def run(
    config: RunConfig,
    run_id: str | None = None,
    echo: Callable[[str], None] = print,
) -> Finished:
    """Do all tasks of the run that are not done yet and return how it stands.

    The same configuration continues the same run unless `run_id` names another. Raises `UserError`, `EndpointError`
    when a level's server does not come up or does not stay, and `RunInterruptedError`.
    """
    paths = RunPaths(config.results / _check_id(run_id or name_run(config)))
    instances = load_instances(config.dataset, config.instances, config.limit)
    total = len(instances) * config.repeats * len(config.levels)
    with lock(paths):
        store = Store(paths)
        known = total - _count_open(store, total)
        if known == total and store.record.get("ended"):
            store.begin(make_record(paths.root.name, config, instances, store.record["sandboxes"]))
            return Finished(paths, total, 0, 0)
        supplied = config.images.source != "local"
        factory = None if config.executor == "ray" else choose_for(config, instances, supplied=supplied)
        executor = _open_executor(config, factory)
        try:
            sandboxes = executor.describe_sandboxes(instances)
            if supplied:  # told when each is first held: those of earlier sessions are known already
                sandboxes["images"] = store.record.get("sandboxes", sandboxes)["images"]
            store.begin(make_record(paths.root.name, config, instances, sandboxes))
            if known:
                echo(f"continuing {paths.root}: {known} of {total} tasks are done")
            _work(config, instances, store, executor, factory)
        except KeyboardInterrupt as error:
            done = total - _count_open(store, total)
            raise RunInterruptedError(
                f"stopped with {done} of {total} tasks done; the same command continues"
            ) from error
        finally:
            executor.close()
        store.record["ended"] = now()
        store.save_record()
    counts = Counter(row.outcome for row in store.rows.values())
    return Finished(paths, total, total - known, counts[Outcome.INFRA_ERROR])


def _open_executor(config: RunConfig, factory: SandboxFactory | None) -> Executor:
    if factory is not None:
        return LocalExecutor(config, factory)
    if config.images.source != "local":
        raise UserError("images.source: executor ray takes the images that its nodes have; set source to local")
    from harness.run.ray_cluster import RayExecutor

    return RayExecutor(config)


def _work(
    config: RunConfig,
    instances: Sequence[Instance],
    store: Store,
    executor: Executor,
    factory: SandboxFactory | None,
) -> None:
    per_level = len(instances) * config.repeats
    tally = Tally(
        {level.name: per_level for level in config.levels},
        [row for row in store.rows.values() if row.outcome != Outcome.INFRA_ERROR],
        count_levels_at_once(config),
    )
    progress = Progress(tally, store.paths.root)
    try:
        supply = make_supply(config.images, factory, instances, progress.note, store.note_image) if factory else None
        progress.describe_images = supply.status if supply is not None else None
        _run_to_end(Orchestrator(config, instances, store, executor, progress, supply=supply).run())
    finally:
        progress.close()


def _check_id(run_id: str) -> str:
    if run_id in ("", ".", "..") or Path(run_id).name != run_id:
        raise UserError(f"--run-id {run_id!r}: expected a plain name, which becomes a folder")
    return run_id


def _count_open(store: Store, total: int) -> int:
    return total - sum(row.outcome != Outcome.INFRA_ERROR for row in store.rows.values())


def _run_to_end(work: Coroutine[Any, Any, None]) -> None:
    """`asyncio.run`, with SIGTERM treated as Ctrl-C so that servers and sandboxes are gone in either case."""
    previous = signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        asyncio.run(work)
    finally:
        signal.signal(signal.SIGTERM, previous)
