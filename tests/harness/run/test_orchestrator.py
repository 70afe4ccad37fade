"""The pipeline: retries, classes of ends, places, images, resumption. Agent and grading steps are scripted."""

import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from orchestrator_doubles import Run, fail, outcomes

from harness.errors import EndpointError, SandboxError, UserError
from harness.instances import Instance
from harness.run.task import Task, Work, derive_seed


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
