"""Where the steps of tasks are carried out: here, in threads. `harness.run.ray_cluster` has the other place."""

import asyncio
import functools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from harness.agent.model import EndpointModel, Usage
from harness.agent.trajectory import Step
from harness.config import RunConfig
from harness.errors import EndpointError
from harness.grading.evaluate import Evaluation
from harness.instances import Instance
from harness.run.sandboxes import TrackedSandboxes
from harness.run.server import Served
from harness.run.task import Task, Work, grade, work
from harness.sandbox.base import SandboxFactory
from harness.sandbox.select import describe

T = TypeVar("T")


class Executor(Protocol):
    """Carries out single steps; what they leave behind is in the task's folder before the call returns.

    Both steps raise `SandboxError`, `EndpointError` or another exception when the machine failed, and leave the markers
    `agent.json` and `task.json` to the caller.
    """

    def describe_sandboxes(self, instances: Sequence[Instance]) -> dict[str, Any]:
        """What the run record keeps of sandboxes and images (`harness.sandbox.select.describe`)."""
        ...

    async def work(self, task: Task, served: Served, on_usage: Callable[[Usage], None]) -> Work:
        """The agent's step; `on_usage` hears of the tokens spent, from any thread."""
        ...

    async def grade(self, task: Task) -> Evaluation:
        """Grade the stored patch."""
        ...

    def close(self) -> None:
        """Stop whatever is at work; no sandbox is left."""
        ...


class LocalExecutor:
    """Steps in threads of this process."""

    def __init__(self, config: RunConfig, factory: SandboxFactory) -> None:
        self._config, self._factory = config, factory
        self._sandboxes = TrackedSandboxes(factory)
        self._stop = threading.Event()
        self._threads = ThreadPoolExecutor(config.agent_workers + config.grading_workers, "sweq")
        self._models: dict[Served, EndpointModel] = {}

    def describe_sandboxes(self, instances: Sequence[Instance]) -> dict[str, Any]:
        """See `Executor.describe_sandboxes`."""
        return describe(self._factory, instances, supplied=self._config.images.source != "local")

    async def work(self, task: Task, served: Served, on_usage: Callable[[Usage], None]) -> Work:
        """See `Executor.work`."""

        def on_step(step: Step) -> None:
            if self._stop.is_set():
                raise EndpointError("the run was interrupted")
            on_usage(step.usage)

        return await self._in_thread(work, task, self._config, self._connect(served), self._sandboxes, on_step)

    async def grade(self, task: Task) -> Evaluation:
        """See `Executor.grade`."""
        return await self._in_thread(
            grade, task, self._sandboxes, self._config.grading_timeout, self._config.restore_tests
        )

    def close(self) -> None:
        """See `Executor.close`. Threads that wait for the model end by themselves, and write nothing more."""
        self._stop.set()
        self._sandboxes.close_all()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _connect(self, served: Served) -> EndpointModel:
        """One client per server, whose tasks share its connections."""
        if served not in self._models:
            self._models[served] = served.address.connect(functools.partial(self._pause, served))
        return self._models[served]

    def _pause(self, served: Served, seconds: float) -> None:
        """Wait before a request is sent again: no longer than the run goes on, and not for a server that has ended."""
        self._stop.wait(seconds)
        served.check_alive()

    async def _in_thread(self, function: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, functools.partial(function, *arguments))
