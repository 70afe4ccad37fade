"""Steps of tasks on a Ray cluster; the store and its lock stay with the driver.

A worker carries a step out in a scratch folder and returns the files that it left; the driver puts them in place before
the orchestrator marks the step as done, in the order in which a local run does. A lost worker is an exception like any
failure of the machine: the step is tried again, elsewhere. Ray itself repeats nothing, so that attempts are counted.
"""

import logging
import os
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from harness.agent.model import Usage
from harness.config import RunConfig
from harness.errors import EndpointError, SandboxError, UserError
from harness.files import replace_file
from harness.grading.evaluate import Evaluation
from harness.instances import Instance
from harness.run.paths import TaskPaths
from harness.run.server import ModelAddress, Served
from harness.run.task import Task, Work, grade, work
from harness.sandbox.select import choose_for, describe

T = TypeVar("T")

_AGENT_CPUS = 0.5
"""Cores that Ray sets aside for an agent, which mostly waits for the model; a test run has a whole one."""


@dataclass(frozen=True)
class Returned:
    """What a step left behind on a worker: its result, and the bytes of its files by name."""

    result: Any
    files: dict[str, bytes]


class RayExecutor:
    """An `Executor` over the cluster that `RAY_ADDRESS` names, or one that Ray starts on this machine."""

    def __init__(self, config: RunConfig) -> None:
        """Connect. Raises `UserError` where Ray is not installed or no cluster answers."""
        self._ray = _connect()
        self._config = config
        self._images: dict[str, Any] = {}
        self._reached: set[str] = set()
        options = {"max_retries": 0, "scheduling_strategy": "SPREAD"}
        self._work = self._ray.remote(num_cpus=_AGENT_CPUS, **options)(work_remotely)
        self._grade = self._ray.remote(num_cpus=1, **options)(grade_remotely)

    def describe_sandboxes(self, instances: Sequence[Instance]) -> dict[str, Any]:
        """See `Executor.describe_sandboxes`: what one worker says; every other is held to its images."""
        remote = self._ray.remote(num_cpus=1, max_retries=0)(describe_remotely)
        described: dict[str, Any] = _unwrap(lambda: self._ray.get(remote.remote(self._config, list(instances))))
        self._images = described["images"]
        return described

    async def work(self, task: Task, served: Served, on_usage: Callable[[Usage], None]) -> Work:
        """See `Executor.work`; tokens are heard of when the work is done."""
        await self._check_reachable(served.address)
        expected = self._images.get(task.instance.instance_id)
        returned = await _await(self._work.remote(_portable(task), self._config, served.address, expected))
        put(returned.files, task.paths)
        done: Work = returned.result
        on_usage(Usage(done.prompt_tokens, done.completion_tokens, done.cached_tokens))
        return done

    async def grade(self, task: Task) -> Evaluation:
        """See `Executor.grade`."""
        patch, expected = task.paths.patch.read_bytes(), self._images.get(task.instance.instance_id)
        returned = await _await(self._grade.remote(_portable(task), self._config, patch, expected))
        put(returned.files, task.paths)
        evaluation: Evaluation = returned.result
        return evaluation

    def close(self) -> None:
        """See `Executor.close`: Ray ends this driver's workers, and their sandboxes end with them."""
        self._ray.shutdown()

    async def _check_reachable(self, address: ModelAddress) -> None:
        """Ask every node once whether it reaches the model: better than hours of failing tasks."""
        if address.base_url in self._reached:
            return
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        for node in [node for node in self._ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]:
            strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            probe = self._ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=strategy)(find_obstacle)
            problem = await _await(probe.remote(address.base_url))
            if problem:
                raise UserError(
                    f"endpoint: Ray's node {node['NodeManagerAddress']} cannot reach {address.base_url} ({problem}); "
                    "set endpoint.host (or base_url) to an address that all nodes reach"
                )
        self._reached.add(address.base_url)


def work_remotely(task: Task, config: RunConfig, address: ModelAddress, image: Any) -> Returned:
    """The agent's step in a scratch folder of this worker. Raises as `work`."""
    with tempfile.TemporaryDirectory(prefix="sweq-") as folder:
        here = replace(task, paths=TaskPaths(Path(folder)))
        factory = _choose(config, task.instance, image)
        done = work(here, config, address.connect(time.sleep), factory, lambda step: None)
        return Returned(done, _collect(Path(folder)))


def grade_remotely(task: Task, config: RunConfig, patch: bytes, image: Any) -> Returned:
    """Grading in a scratch folder of this worker. Raises as `grade`."""
    with tempfile.TemporaryDirectory(prefix="sweq-") as folder:
        here = replace(task, paths=TaskPaths(Path(folder)))
        here.paths.patch.write_bytes(patch)
        factory = _choose(config, task.instance, image)
        evaluation = grade(here, factory, config.grading_timeout, config.restore_tests)
        here.paths.patch.unlink()
        return Returned(evaluation, _collect(Path(folder)))


def describe_remotely(config: RunConfig, instances: list[Instance]) -> dict[str, Any]:
    """See `harness.sandbox.select.describe`, said by this worker."""
    return describe(choose_for(config, instances), instances)


def find_obstacle(base_url: str) -> str:
    """Why this worker cannot reach `base_url`; empty where it can."""
    import httpx

    try:
        httpx.get(f"{base_url}/models", timeout=10.0, trust_env=False)
    except httpx.HTTPError as error:
        return str(error) or type(error).__name__
    return ""


def _choose(config: RunConfig, instance: Instance, image: Any) -> Any:
    """The factory for one instance here; an image other than the run's is no image to compare levels with."""
    factory = choose_for(config, [instance])
    found = describe(factory, [instance])["images"].get(instance.instance_id)
    if image is not None and found != image:
        raise SandboxError(f"{instance.instance_id}: this node has {found}, the run began with {image}")
    return factory


def _connect() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise UserError("executor: ray is not installed; pip install 'sweq[ray]', or set executor to local") from error
    if not ray.is_initialized():
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UserError(f"executor: no Ray cluster answers ({error}); check RAY_ADDRESS, or unset it") from error
    return ray


def _portable(task: Task) -> Task:
    """The task as a worker gets it: the driver's paths mean nothing there."""
    return replace(task, paths=TaskPaths(Path()))


def _collect(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def put(files: dict[str, bytes], paths: TaskPaths) -> None:
    """Put a worker's files into the task's folder, each in one step."""
    for name, data in files.items():
        replace_file(paths.root / name, data)


async def _await(reference: Awaitable[T]) -> T:
    """The result of a remote step; its own exception, not Ray's wrapping of it."""
    from ray.exceptions import RayTaskError

    try:
        return await reference
    except RayTaskError as error:
        raise find_own(error) from error


def _unwrap(function: Callable[[], T]) -> T:
    from ray.exceptions import RayTaskError

    try:
        return function()
    except RayTaskError as error:
        raise find_own(error) from error


def find_own(error: Any) -> Exception:
    """Ours, without the remote traceback that Ray puts into the message; anything else as it is."""
    cause = error.cause
    if isinstance(cause, UserError | SandboxError | EndpointError):
        return type(cause)(str(cause))
    return error if not isinstance(cause, Exception) else RuntimeError(f"{type(cause).__name__}: {cause}")
