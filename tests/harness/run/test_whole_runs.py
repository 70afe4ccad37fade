"""Whole runs through the command line: real sandboxes and starter instances, a scripted model, and kill -9."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from harness.starter.catalogue import load_rows

pytestmark = [pytest.mark.namespace, pytest.mark.slow]

ENGINE = [sys.executable, str(Path(__file__).parents[1] / "scripted_engine.py")]
SOLVED, WRONG, IDLE = "sweq__intervals-1", "sweq__backoff-1", "sweq__slugtext-1"
EXPECTED = {SOLVED: "resolved", WRONG: "unresolved", IDLE: "empty_patch"}
SUBMIT = "Done.\n```bash\nsubmit\n```"


def bash(command: str) -> str:
    return f"Next.\n```bash\n{command}\n```"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A run of three instances at two levels: one is solved, one is changed to no avail, one is left alone."""
    rows = {row["instance_id"]: row for row in load_rows()}
    replies = {
        SOLVED: [bash("git apply - <<'END'\n" + rows[SOLVED]["patch"] + "\nEND"), SUBMIT],
        WRONG: [bash("ls"), bash("echo '# a remark' >> README.md"), SUBMIT],
        IDLE: [SUBMIT],
    }
    model = tmp_path / "model.json"
    script = {"replies": {rows[one]["problem_statement"].strip(): said for one, said in replies.items()}}
    model.write_text(json.dumps({**script, "seconds": 0.2}))
    text = tmp_path / "text.txt"
    text.write_text("some text")
    settings: dict[str, Any] = {
        "name": "whole",
        "dataset": "starter",
        "instances": [SOLVED, WRONG, IDLE],
        "model": str(model),
        "levels": ["bf16", "int4"],
        "endpoint": {"engine_command": ENGINE},
        "agent": {"profile": "text"},
        "sandbox": "namespace",
        "agent_workers": 2,
        "grading_workers": 1,
        "perplexity_text": str(text),
        "results": str(tmp_path / "runs"),
    }
    path = tmp_path / "whole.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def start(config: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "harness", "eval", "-c", str(config), "--run-id", "one", *arguments]
    # A suite that a shell started in the background ignores Ctrl-C, and its children would inherit that.
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed)


def finish(process: subprocess.Popen[str], timeout: float = 100) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


def check_results(run: Path) -> None:
    """Every task has its one row with the right outcome, and the files agree with each other."""
    rows = pq.read_table(run / "results.parquet").to_pylist()
    found = {(row["level"], row["instance_id"]): row["outcome"] for row in rows}
    assert len(rows) == len(found) == 6
    assert found == {(level, one): outcome for level in ("bf16", "int4") for one, outcome in EXPECTED.items()}
    record = json.loads((run / "run.json").read_text())
    assert record["ended"]
    assert record["levels"]["int4"]["perplexity"] == 12.5
    for level in ("bf16", "int4"):
        folder = run / "levels" / level
        predictions = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
        assert {one["instance_id"] for one in predictions if one["model_patch"]} == {SOLVED, WRONG}
        report = json.loads((folder / "instances" / SOLVED / "0" / "report.json").read_text())
        assert report[SOLVED]["resolved"] is True
        assert "passed" in (folder / "instances" / SOLVED / "0" / "test_output.txt").read_text()


def test_a_run_and_what_a_second_call_says(config: Path) -> None:
    status, out, err = finish(start(config))
    assert status == 0, err
    run = config.parent / "runs" / "one"
    check_results(run)
    assert "levels.png" in out
    assert (run / "levels.png").exists()
    status, out, err = finish(start(config))
    assert (status, "already finished" in out) == (0, True), err
    status, _, err = finish(start(config, "--set", "agent.step_limit=9"))
    assert status == 2
    assert err.strip().endswith("choose another --run-id, or undo the change")
    assert "config.agent.step_limit was 250, is now 9" in err


def test_killed_at_random_points_nothing_is_lost_or_done_twice(config: Path) -> None:
    run = config.parent / "runs" / "one"
    choice = random.Random(7)
    finished: dict[Path, tuple[int, bytes]] = {}
    for _ in range(6):
        process = start(config)
        wait_for_progress(process, run, len(finished))
        time.sleep(choice.uniform(0.0, 0.6))
        process.kill()
        process.communicate()
        check_whole(run)
        check_kept(finished)
        finished |= {path: stamp(path) for name in ("agent", "task") for path in run.rglob(f"{name}.json")}
        wait_for_no_server(run)
    status, _, err = finish(start(config))
    assert status == 0, err
    check_results(run)
    check_kept(finished)


def wait_for_progress(process: subprocess.Popen[str], run: Path, known: int) -> None:
    """Until the process has put something new on disk that a kill could endanger, or has ended."""
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        if sum(1 for name in ("agent", "task") for _ in run.rglob(f"{name}.json")) > known:
            return
        time.sleep(0.01)


def check_whole(run: Path) -> None:
    for path in [*run.rglob("*.json"), *run.glob("run.json")]:
        json.loads(path.read_text())
    for path in run.rglob("predictions*.jsonl"):
        assert all(json.loads(line) for line in path.read_text().splitlines())
    if (run / "results.parquet").exists():
        pq.read_table(run / "results.parquet")


def stamp(path: Path) -> tuple[int, bytes]:
    return path.stat().st_mtime_ns, path.read_bytes()


def check_kept(finished: dict[Path, tuple[int, bytes]]) -> None:
    for path, before in finished.items():
        assert stamp(path) == before, f"{path} was written again"


def wait_for_no_server(run: Path) -> None:
    """The guards end the servers of a killed run: no process names this run's model any more."""
    deadline = time.monotonic() + 10
    needle = str(run.parents[1] / "model.json").encode()
    while any(needle in command for command in read_commands()):
        assert time.monotonic() < deadline, "a server outlived its run"
        time.sleep(0.02)


def read_commands() -> list[bytes]:
    commands = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid():
            try:
                commands.append((process / "cmdline").read_bytes())
            except (FileNotFoundError, ProcessLookupError):
                continue
    return commands


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
    wait_for_no_server(run)
    status, _, err = finish(start(config))
    assert status == 0, err
    check_results(run)
