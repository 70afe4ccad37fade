"""From a configuration to a finished run directory."""

import asyncio
import signal
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.config import RunConfig
from harness.errors import UserError
from harness.instances import load_instances
from harness.run.orchestrator import Orchestrator
from harness.run.outcome import Outcome
from harness.run.paths import RunPaths
from harness.run.progress import Progress
from harness.run.record import make_record, name_run, now
from harness.run.store import Store, lock
from harness.sandbox.select import choose, describe


@dataclass(frozen=True)
class Finished:
    """How a run stands: `total` tasks, each with a row. `fresh` counts those that this process finished."""

    paths: RunPaths
    total: int
    fresh: int
    infra_errors: int


class RunInterruptedError(Exception):
    """Somebody stopped the run (Ctrl-C, SIGTERM); all finished steps are on disk. The message says how to go on."""


def run(config: RunConfig, run_id: str | None = None, echo: Callable[[str], None] = print) -> Finished:
    """Do all tasks of the run that are not done yet and return how it stands.

    The same configuration continues the same run unless `run_id` names another. Raises `UserError`, `EndpointError`
    when a level's server does not come up, and `RunInterruptedError`.
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
        factory = choose(
            config.sandbox,
            instances,
            config.agent.external.folders if config.agent.external else (),
            host=config.docker.host,
            runtime=config.docker.runtime,
        )
        store.begin(make_record(paths.root.name, config, instances, describe(factory, instances)))
        if known:
            echo(f"continuing {paths.root}: {known} of {total} tasks are done")
        progress = Progress(total, known)
        try:
            _run_to_end(Orchestrator(config, instances, store, factory, progress).run())
        except KeyboardInterrupt as error:
            done = total - _count_open(store, total)
            raise RunInterruptedError(
                f"stopped with {done} of {total} tasks done; the same command continues"
            ) from error
        finally:
            progress.close()
        store.record["ended"] = now()
        store.save_record()
    counts = Counter(row.outcome for row in store.rows.values())
    return Finished(paths, total, total - known, counts[Outcome.INFRA_ERROR])


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
