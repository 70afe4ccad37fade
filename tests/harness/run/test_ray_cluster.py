"""What runs on a Ray worker and how its files come back, without a cluster: `benchmarks/ray_two_workers.py` has one."""

import asyncio
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scripted_runs import SOLVED, write_config

from harness.config import load_config
from harness.errors import SandboxError, UserError
from harness.instances import load_instances
from harness.run import ray_cluster
from harness.run.attempts import ServerLostError
from harness.run.paths import RunPaths
from harness.run.ray_cluster import grade_remotely, work_remotely
from harness.run.server import LevelServer
from harness.run.start import run
from harness.run.task import Task, to_row


def test_without_ray_one_line_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    config = load_config(write_config(tmp_path, {SOLVED: "resolved"}), ["executor=ray"])
    with pytest.raises(UserError, match=r"ray is not installed; pip install 'sweq\[ray\]'"):
        run(config, "one")


class RayError(Exception):
    """As `ray.exceptions.RayTaskError`: what a worker raised is its cause."""

    def __init__(self, cause: Exception) -> None:
        super().__init__("remote traceback")
        self.cause = cause


@pytest.mark.parametrize(
    ("cause", "kind", "text"),
    [
        (SandboxError("no daemon"), SandboxError, "no daemon"),
        (UserError("no image"), UserError, "no image"),
        (ServerLostError("gone"), ServerLostError, "gone"),
        (OSError("disk full"), RuntimeError, "OSError: disk full"),
    ],
)
def test_a_workers_error_comes_back_as_itself(cause: Exception, kind: type[Exception], text: str) -> None:
    error = ray_cluster.find_own(RayError(cause))
    assert (type(error), str(error)) == (kind, text)


@pytest.mark.namespace
def test_a_worker_returns_the_files_of_both_steps(tmp_path: Path) -> None:
    config = load_config(write_config(tmp_path, {SOLVED: "resolved"}))
    instance = load_instances("starter", [SOLVED])[0]
    paths = RunPaths(tmp_path / "run").level("int4")
    task = Task(config.levels[1], instance, 0, 5, paths.task(SOLVED))
    server = LevelServer(config.levels[1], config, paths, print)
    asyncio.run(server.start())
    try:
        address = asyncio.run(server.ready()).address
        worked = work_remotely(task, config, address, None)
    finally:
        server.close()
    assert set(worked.files) == {"trajectory.json", "patch.diff"}
    assert not task.paths.root.exists()
    graded = grade_remotely(task, config, worked.files["patch.diff"], None)
    assert set(graded.files) == {"test_output.txt", "report.json"}
    ray_cluster.put({**worked.files, **graded.files}, task.paths)
    assert json.loads(task.paths.report.read_text())[SOLVED]["resolved"] is True
    assert to_row("one", task, worked.result, graded.result).outcome == "resolved"


def test_another_image_than_the_runs_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(write_config(tmp_path, {SOLVED: "resolved"}))
    instance = replace(load_instances("starter", [SOLVED])[0], image="x:latest")
    found: dict[str, Any] = {"names": ["docker"], "images": {SOLVED: {"digest": "b"}}}
    monkeypatch.setattr(ray_cluster, "choose_for", lambda *_: object())
    monkeypatch.setattr(ray_cluster, "describe", lambda *_: found)
    task = Task(config.levels[0], instance, 0, 5, RunPaths(tmp_path).level("a").task(SOLVED))
    with pytest.raises(SandboxError, match=r"this node has .*'b'.*, the run began with .*'a'"):
        grade_remotely(task, config, b"", {"digest": "a"})
