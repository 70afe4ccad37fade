"""Whole runs through the command line: real sandboxes and starter instances, a scripted model, and kill -9."""

import signal
from pathlib import Path

import pytest
from scripted_runs import (
    IDLE,
    SOLVED,
    WRONG,
    KillDrill,
    check_results,
    finish,
    start,
    wait_for_no_process,
    wait_for_progress,
    write_config,
)

pytestmark = [pytest.mark.namespace, pytest.mark.slow]

OUTCOMES = {SOLVED: "resolved", WRONG: "unresolved", IDLE: "empty_patch"}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A run of three instances at two levels: one is solved, one is changed to no avail, one is left alone."""
    return write_config(tmp_path, OUTCOMES)


def test_a_run_and_what_a_second_call_says(config: Path) -> None:
    status, out, err = finish(start(config))
    assert status == 0, err
    run = config.parent / "runs" / "one"
    check_results(run, OUTCOMES)
    log = run / "levels" / "bf16" / "instances" / SOLVED / "0" / "test_output.txt"
    assert "passed" in log.read_text()
    assert "[6/6]" in err
    assert "levels.png" in out
    assert (run / "levels.png").exists()
    status, out, err = finish(start(config))
    assert (status, "already finished" in out) == (0, True), err
    status, _, err = finish(start(config, "--set", "agent.step_limit=9"))
    assert status == 2
    assert err.strip().endswith("choose another --run-id, or undo the change")
    assert "config.agent.step_limit was 250, is now 9" in err


def test_killed_at_random_points_nothing_is_lost_or_done_twice(config: Path) -> None:
    drill = KillDrill(config, OUTCOMES)
    drill.run(10)
    assert drill.killed["at work"] >= 3


def test_ctrl_c_leaves_a_run_that_continues_and_a_second_process_is_refused(config: Path) -> None:
    run = config.parent / "runs" / "one"
    first = start(config)
    wait_for_progress(first, run, 0)
    first.send_signal(signal.SIGSTOP)  # it keeps its lock, and cannot end before it is interrupted
    status, _, err = finish(start(config))
    assert (status, f"process {first.pid} is working on this run" in err) == (2, True), err
    first.send_signal(signal.SIGINT)
    first.send_signal(signal.SIGCONT)
    status, _, err = finish(first, timeout=30)
    assert status == 130
    assert "tasks done; the same command continues" in err
    assert "Traceback" not in err
    wait_for_no_process(run)
    status, _, err = finish(start(config))
    assert status == 0, err
    check_results(run, OUTCOMES)
