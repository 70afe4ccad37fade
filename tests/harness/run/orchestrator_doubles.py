"""A run whose agent and grading steps are scripted."""

import asyncio
import io
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.config import RunConfig
from harness.endpoint import Endpoint
from harness.errors import SandboxError
from harness.grading.evaluate import Evaluation
from harness.grading.verdict import Verdict
from harness.instances import Instance
from harness.run import executor
from harness.run.executor import LocalExecutor
from harness.run.orchestrator import Orchestrator
from harness.run.paths import RunPaths
from harness.run.progress import Progress
from harness.run.record import make_record
from harness.run.store import Store, write_text
from harness.run.tally import Tally
from harness.run.task import Task, Work
from harness.sandbox.base import ImageSupply, Sandbox

ENGINE = [sys.executable, str(Path(__file__).parents[1] / "scripted_engine.py")]
PATCH = "diff --git a/x b/x\n--- a/x\n+++ b/x\n@@ -1 +1 @@\n-a\n+b\n"


class NoSandboxes:
    """A factory for runs whose steps are scripted."""

    name = "none"

    def create(self, instance: Instance) -> Sandbox:
        raise SandboxError("not in this test")


class Run:
    """A run of instances i-0, i-1, ... with two levels, whose steps are `work` and `grade`."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, instances: int = 2, **config: Any) -> None:
        self.works: Counter[str] = Counter()
        self.grades: Counter[str] = Counter()
        self.seeds: set[tuple[str, str, int, int]] = set()
        self.work: Callable[[Task, int], Work] = lambda task, attempt: Work(steps=1, completion_tokens=10)
        self.grade: Callable[[Task, int], str] = lambda task, attempt: "resolved"
        self.identity = {"weights_bytes": 1000, "weights_sha256": "ab", "supports_tools": False}
        self.lock = threading.Lock()
        model = folder / "model.json"
        model.write_text("{}")
        levels = config.pop("levels", ["bf16", "int4"])
        self.config = RunConfig.model_validate(
            {
                "name": "t",
                "dataset": "starter",
                "model": str(model),
                "levels": [{"name": name, "quant": name} for name in levels],
                "endpoint": {"engine_command": ENGINE},
                "agent": {"profile": "text"},
                **config,
            }
        )
        self.instances = [make_instance(f"i-{number}") for number in range(instances)]
        self.paths = RunPaths(folder / "run")
        patch.setattr("harness.run.server.open_endpoint", self._open)
        patch.setattr("harness.run.server.is_answering", self._answers)
        patch.setattr(executor, "work", self._work)
        patch.setattr(executor, "grade", self._grade)
        self.said = io.StringIO()
        self.supply: ImageSupply | None = None

    def __call__(self) -> Store:
        store = Store(self.paths)
        store.begin(make_record("run", self.config, self.instances, {}))
        tally = Tally({level.name: 100 for level in self.config.levels})
        progress = Progress(tally, self.paths.root, stream=self.said)
        pipeline = Orchestrator(
            self.config,
            self.instances,
            store,
            LocalExecutor(self.config, NoSandboxes()),
            progress,
            supply=self.supply,
            pauses=(0.0, 0.0),
        )
        asyncio.run(pipeline.run())
        return store

    async def _open(self, *_: object) -> Endpoint:
        return Endpoint("http://127.0.0.1:9/v1", "scripted", self.identity)

    async def _answers(self, endpoint: Endpoint) -> bool:
        return endpoint.is_alive

    def _work(self, task: Task, *_: object) -> Work:
        with self.lock:
            self.works[name := name_of(task)] += 1
            self.seeds.add((*task.key, task.seed))
        done = self.work(task, self.works[name])
        write_text(task.paths.patch, PATCH)
        return done

    def _grade(self, task: Task, *_: object) -> Evaluation:
        with self.lock:
            self.grades[name := name_of(task)] += 1
        status: Any = self.grade(task, self.grades[name])
        verdict = Verdict(task.instance.instance_id, status == "resolved", status == "resolved", status)
        return Evaluation(verdict, "log", 0.5)


def make_instance(instance_id: str) -> Instance:
    return Instance(
        instance_id, "a/b", "0" * 40, "1", "issue", "", "", ("t",), (), "", "parse_log_pytest", "pass_and_fail"
    )


def name_of(task: Task) -> str:
    return f"{task.level.name}/{task.instance.instance_id}/{task.repeat}"


def fail(error: Exception) -> Any:
    raise error


def outcomes(store: Store) -> dict[str, str]:
    return {f"{level}/{instance}/{repeat}": row.outcome for (level, instance, repeat), row in store.rows.items()}
