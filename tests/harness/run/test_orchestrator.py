"""The pipeline: retries, classes of ends, places, resumption. Agent and grading steps are scripted."""

import asyncio
import io
import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from harness.config import RunConfig
from harness.endpoint import Endpoint
from harness.errors import EndpointError, SandboxError, UserError
from harness.grading.evaluate import Evaluation
from harness.grading.verdict import Verdict
from harness.instances import Instance
from harness.run import executor
from harness.run.attempts import ServerLostError
from harness.run.executor import LocalExecutor
from harness.run.orchestrator import Orchestrator
from harness.run.paths import RunPaths
from harness.run.progress import Progress
from harness.run.record import make_record
from harness.run.store import Store, write_text
from harness.run.tally import Tally
from harness.run.task import Task, Work, derive_seed
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


def test_every_task_is_done_once_with_seeds_paired_over_levels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path, monkeypatch, repeats=2)
    store = run()
    assert len(store.rows) == 8
    assert set(run.works.values()) == set(run.grades.values()) == {1}
    by_level = [{seed[1:] for seed in run.seeds if seed[0] == level} for level in ("bf16", "int4")]
    assert by_level[0] == by_level[1]
    assert len({seed[3] for seed in run.seeds}) == 4
    row = store.rows["int4", "i-1", 1]
    assert (row.outcome, row.resolved, row.files_touched, row.attempts) == ("resolved", True, 1, 1)
    level = store.record["levels"]["bf16"]
    assert (level["weights_bytes"], level["identity"]["weights_sha256"]) == (1000, "ab")
    assert level["generated_tokens"] == 40
    assert level["tokens_per_second"] > 0
    assert store.paths.results.exists()
    assert run().rows == store.rows
    assert set(run.works.values()) == {1}


def test_seeds_do_not_depend_on_the_machine() -> None:
    assert derive_seed(0, "sweq__ttlcache-1", 0) == int.from_bytes(bytes.fromhex("769712ff"), "big") >> 1


@pytest.mark.parametrize("error", [SandboxError("daemon gone"), EndpointError("HTTP 500"), OSError("disk full")])
def test_a_failing_machine_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    run = Run(tmp_path, monkeypatch, levels=["int4"])
    run.work = lambda task, attempt: Work() if attempt == 3 else fail(error)
    run.grade = lambda task, attempt: "unresolved" if attempt == 2 else fail(error)
    store = run()
    assert outcomes(store) == {"int4/i-0/0": "unresolved", "int4/i-1/0": "unresolved"}
    assert {row.attempts for row in store.rows.values()} == {4}


def test_what_keeps_failing_is_no_answer_and_tried_by_the_next_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path, monkeypatch, levels=["int4"])
    run.work = lambda task, attempt: Work() if task.instance.instance_id == "i-0" else fail(SandboxError("daemon gone"))
    run.grade = lambda task, attempt: fail(SandboxError("disk full"))
    store = run()
    assert set(outcomes(store).values()) == {"infra_error"}
    assert store.rows["int4", "i-0", 0].infra_reason == "SandboxError: disk full"
    assert store.rows["int4", "i-1", 0].attempts == 3
    assert "daemon gone" in store.paths.level("int4").task("i-1").error.read_text()
    run.work = lambda task, attempt: Work()
    run.grade = lambda task, attempt: "resolved"
    assert set(outcomes(run()).values()) == {"resolved"}
    assert run.works == {"int4/i-0/0": 1, "int4/i-1/0": 4}


def test_the_wall_clock_is_a_class_of_its_own_and_not_graded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path, monkeypatch, levels=["int4"])
    slow = Work(limit="wall_clock")
    run.work = lambda task, attempt: slow if task.instance.instance_id == "i-0" or attempt == 1 else Work()
    store = run()
    assert outcomes(store) == {"int4/i-0/0": "wall_clock", "int4/i-1/0": "resolved"}
    assert run.grades == {"int4/i-1/0": 1}
    assert store.rows["int4", "i-0", 0].attempts == 2


@pytest.mark.parametrize(
    ("statuses", "outcome", "reason"),
    [
        (("timeout", "resolved"), "resolved", ""),
        (("timeout", "timeout"), "unresolved", "tests_timed_out"),
        (("ungradable",), "unresolved", "ungradable_log"),
        (("patch_failed",), "patch_failed", ""),
        (("empty_patch",), "empty_patch", ""),
    ],
)
def test_verdicts_become_outcomes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, statuses: tuple[str, ...], outcome: str, reason: str
) -> None:
    run = Run(tmp_path, monkeypatch, instances=1, levels=["int4"])
    run.grade = lambda task, attempt: statuses[attempt - 1]
    row = run().rows["int4", "i-0", 0]
    assert (row.outcome, row.infra_reason) == (outcome, reason)
    assert run.grades["int4/i-0/0"] == len(statuses)


def test_a_limit_is_recorded_beside_the_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path, monkeypatch, instances=1, levels=["int4"])
    run.work = lambda task, attempt: Work(limit="step_limit")
    row = run().rows["int4", "i-0", 0]
    assert (row.limit, row.outcome) == ("step_limit", "resolved")


def test_tests_take_no_place_from_agents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path, monkeypatch, instances=4, levels=["int4"], agent_workers=1, grading_workers=1)
    all_worked = threading.Event()

    def work_on(task: Task, attempt: int) -> Work:
        if len(run.works) == 4:
            all_worked.set()
        return Work()

    run.work = work_on
    run.grade = lambda task, attempt: "resolved" if all_worked.wait(10) else "unresolved"
    assert set(outcomes(run()).values()) == {"resolved"}


def test_places_bound_how_many_agents_work_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path, monkeypatch, instances=6, levels=["int4"], agent_workers=2)
    at_work, most = 0, 0

    def work_on(task: Task, attempt: int) -> Work:
        nonlocal at_work, most
        with run.lock:
            at_work += 1
            most = max(most, at_work)
        time.sleep(0.02)
        with run.lock:
            at_work -= 1
        return Work()

    run.work = work_on
    run()
    assert most == 2


def test_after_a_stop_between_the_steps_only_grading_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path, monkeypatch, levels=["int4"])
    run.grade = lambda task, attempt: fail(UserError("this instance cannot be graded here"))
    with pytest.raises(UserError, match="cannot be graded here"):
        run()
    assert run.works["int4/i-0/0"] == 1
    finished = [one for one in ("i-0", "i-1") if run.paths.level("int4").task(one).agent.exists()]
    assert finished
    run.grade = lambda task, attempt: "resolved"
    assert set(outcomes(run()).values()) == {"resolved"}
    assert all(run.works[f"int4/{one}/0"] == 1 for one in finished)


def test_a_crashed_server_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path, monkeypatch, levels=["int4"], agent_workers=1)
    opened: list[Endpoint] = []
    monkeypatch.setattr("harness.run.server.open_endpoint", remember(opened))

    def work_on(task: Task, attempt: int) -> Work:
        if len(opened) == 1:
            opened[0].close()
            raise EndpointError("connection reset")
        return Work()

    run.work = work_on
    assert set(outcomes(run()).values()) == {"resolved"}
    assert len(opened) == 2
    assert not any(endpoint.is_alive for endpoint in opened)


def test_a_server_that_does_not_come_back_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path, monkeypatch, levels=["int4"], agent_workers=1)
    opened: list[Endpoint] = []
    monkeypatch.setattr("harness.run.server.open_endpoint", remember(opened))

    def work_on(task: Task, attempt: int) -> Work:
        Path(run.config.model or "").write_text(json.dumps({"crash": "no memory left"}))
        opened[0].close()
        raise EndpointError("connection reset")

    run.work = work_on
    with pytest.raises(ServerLostError, match=r"level int4: .*no memory left"):
        run()
    assert Store(run.paths).rows == {}


def test_other_weights_under_the_same_level_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path, monkeypatch, levels=["int4"])
    run.work = lambda task, attempt: fail(SandboxError("down"))
    run()
    run.identity["weights_sha256"] = "cd"
    with pytest.raises(UserError, match=r"levels\.int4\.identity\.weights_sha256 was 'ab', the server now says 'cd'"):
        run()


def test_a_crash_uses_up_no_attempt_and_counts_as_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path, monkeypatch, instances=1, levels=["int4"])
    opened: list[Endpoint] = []
    monkeypatch.setattr("harness.run.server.open_endpoint", remember(opened))

    def work_on(task: Task, attempt: int) -> Work:
        if attempt in (1, 3):
            os.kill(opened[-1].identity["pid"], signal.SIGKILL)
            wait_for_end(opened[-1])
            raise EndpointError("connection reset")
        return Work() if attempt == 5 else fail(SandboxError("daemon gone"))

    run.work = work_on
    store = run()
    assert outcomes(store) == {"int4/i-0/0": "resolved"}
    assert (store.rows["int4", "i-0", 0].attempts, len(opened)) == (5, 3)
    assert "the server ended or hangs, starting it again" in run.said.getvalue()


def test_a_server_that_crashes_on_every_task_ends_the_run_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path, monkeypatch, instances=3, levels=["int4"], agent_workers=1)
    opened: list[Endpoint] = []
    monkeypatch.setattr("harness.run.server.open_endpoint", remember(opened))

    def work_on(task: Task, attempt: int) -> Work:
        opened[-1].close()
        raise EndpointError("connection reset")

    run.work = work_on
    with pytest.raises(ServerLostError, match=r"level int4: its server ended 4 times in a row before any task") as said:
        run()
    assert "\n" not in str(said.value)
    assert len(opened) == 4


def test_a_server_that_hangs_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path, monkeypatch, instances=1, levels=["int4"])
    opened: list[Endpoint] = []
    monkeypatch.setattr("harness.run.server.open_endpoint", remember(opened))

    async def answers(endpoint: Endpoint) -> bool:
        return endpoint is not opened[0]

    monkeypatch.setattr("harness.run.server.is_answering", answers)
    run.work = lambda task, attempt: fail(EndpointError("no answer within 1 s")) if attempt == 1 else Work()
    assert set(outcomes(run()).values()) == {"resolved"}
    assert len(opened) == 2
    assert not opened[0].is_alive


def test_a_server_of_others_that_stays_away_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path, monkeypatch, levels=["int4"], endpoint={"start_timeout": 0.05})

    async def answers(endpoint: Endpoint) -> bool:
        return False

    monkeypatch.setattr("harness.run.server.is_answering", answers)
    run.work = lambda task, attempt: fail(EndpointError("connection refused"))
    with pytest.raises(ServerLostError, match=r"has not answered for endpoint\.start_timeout 0\.05 s"):
        run()
    assert Store(run.paths).rows == {}


@pytest.mark.parametrize(
    ("settings", "order"),
    [
        ({}, "a0 a1 b0 b1 b0' b1' a0' a1'"),
        ({"block": 1}, "a0 b0 b1 a1 a0' b0' b1' a1'"),
        ({"levels_at_once": 2}, "a0 b0 a1 b1 a0' b0' a1' b1'"),
    ],
)
def test_levels_are_interleaved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, int], order: str
) -> None:
    run = Run(tmp_path, monkeypatch, levels=["a", "b"], repeats=2, agent_workers=1, **settings)
    done: list[str] = []

    def work_on(task: Task, attempt: int) -> Work:
        done.append(f"{task.level.name}{task.instance.instance_id[-1]}{chr(39) * task.repeat}")
        return Work()

    run.work = work_on
    run()
    assert " ".join(done) == order


def test_images_are_held_from_before_the_work_until_after_the_tests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path, monkeypatch, instances=3, levels=["int4"], agent_workers=1)
    supply = Supply()
    run.supply = supply
    run.work = lambda task, attempt: Work() if supply.held[task.instance.instance_id] else fail(OSError("no image"))
    run.grade = lambda task, attempt: "resolved" if supply.held[task.instance.instance_id] else "unresolved"
    store = run()
    assert outcomes(store) == {"int4/i-0/0": "resolved", "int4/i-1/0": "resolved", "int4/i-2/0": "infra_error"}
    assert store.rows["int4", "i-2", 0].infra_reason == "SandboxError: no such image"
    assert (supply.fetched, supply.closed) == (["i-2", "i-1", "i-0"], True)
    assert not +supply.held


class Supply:
    """Images of all instances but i-2, in reverse order."""

    def __init__(self) -> None:
        self.held: Counter[str] = Counter()
        self.fetched: list[str] = []
        self.closed = False

    def order(self, instances: Sequence[Instance]) -> list[Instance]:
        return list(reversed(instances))

    def prefetch(self, instances: Sequence[Instance]) -> None:
        self.fetched += [instance.instance_id for instance in instances]

    @contextmanager
    def hold(self, instance: Instance) -> Iterator[None]:
        if instance.instance_id == "i-2":
            raise SandboxError("no such image")
        self.held[instance.instance_id] += 1
        yield
        self.held[instance.instance_id] -= 1

    def status(self) -> str:
        return ""

    def close(self) -> None:
        self.closed = True


def test_the_tools_profile_needs_a_template_with_tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path, monkeypatch, agent={"profile": "tools"})
    with pytest.raises(UserError, match=r"set agent\.profile to text"):
        run()


def wait_for_end(endpoint: Endpoint) -> None:
    deadline = time.monotonic() + 10
    while endpoint.is_alive and time.monotonic() < deadline:
        time.sleep(0.01)


def remember(opened: list[Endpoint]) -> Callable[..., Any]:
    from harness.endpoint import open_endpoint

    async def open_and_remember(*arguments: Any) -> Endpoint:
        opened.append(await open_endpoint(*arguments))
        return opened[-1]

    return open_and_remember
