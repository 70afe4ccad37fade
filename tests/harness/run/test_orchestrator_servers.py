"""Servers during a run: crashes, crash loops, hangs, and those that stay away. Agent and grading steps are scripted."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from orchestrator_doubles import Run, fail, outcomes

from harness.endpoint import Endpoint
from harness.errors import EndpointError, SandboxError, UserError
from harness.run.attempts import ServerLostError
from harness.run.store import Store
from harness.run.task import Task, Work


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
