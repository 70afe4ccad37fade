"""Whole runs of starter instances with a scripted model, and what must be true of them however often they are killed.

Used by tests, and by `benchmarks/kill_and_resume.py` and `benchmarks/ray_two_workers.py`.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from harness.starter.catalogue import load_rows

ENGINE = [sys.executable, str(Path(__file__).parents[1] / "scripted_engine.py")]
SOLVED, WRONG, IDLE = "sweq__intervals-1", "sweq__backoff-1", "sweq__slugtext-1"
SUBMIT = "Done.\n```bash\nsubmit\n```"
LEVELS = ("bf16", "int4")


def write_config(folder: Path, outcomes: dict[str, str], seconds: float = 0.1, **settings: Any) -> Path:
    """A configuration of a run in `folder` whose model makes each instance end as `outcomes` says.

    Outcomes are resolved, unresolved or empty_patch; an answer takes `seconds`.
    """
    rows = {row["instance_id"]: row for row in load_rows()}
    scripts = {
        "resolved": lambda row: [_bash("git apply - <<'END'\n" + row["patch"] + "\nEND"), SUBMIT],
        "unresolved": lambda row: [_bash("ls"), _bash("echo '# a remark' >> README.md"), SUBMIT],
        "empty_patch": lambda row: [SUBMIT],
    }
    replies = {rows[one]["problem_statement"].strip(): scripts[outcome](rows[one]) for one, outcome in outcomes.items()}
    model, text = folder / "model.json", folder / "text.txt"
    model.write_text(json.dumps({"replies": replies, "seconds": seconds}))
    text.write_text("some text")
    content = {
        "name": "whole",
        "dataset": "starter",
        "instances": list(outcomes),
        "model": str(model),
        "levels": list(LEVELS),
        "endpoint": {"engine_command": ENGINE},
        "agent": {"profile": "text"},
        "sandbox": "namespace",
        "agent_workers": 2,
        "grading_workers": 1,
        "perplexity_text": str(text),
        "divergence": True,
        "results": str(folder / "runs"),
        **settings,
    }
    path = folder / "whole.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def _bash(command: str) -> str:
    return f"Next.\n```bash\n{command}\n```"


def start(
    config: Path, *arguments: str, run_id: str = "one", env: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    """`sweq eval` as a process of its own."""
    command = [sys.executable, "-m", "harness", "eval", "-c", str(config), "--run-id", run_id, *arguments]
    # A suite that a shell started in the background ignores Ctrl-C, and its children would inherit that.
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, stdout=pipe, stderr=pipe, text=True, preexec_fn=heed, env={**os.environ, **(env or {})}
    )


def finish(process: subprocess.Popen[str], timeout: float = 100) -> tuple[int, str, str]:
    """Exit status, stdout and stderr."""
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


def check_results(run: Path, outcomes: dict[str, str], repeats: int = 1) -> None:
    """Every task has exactly one row with the right outcome, and the files agree with each other."""
    rows = pq.read_table(run / "results.parquet").to_pylist()
    found = {(row["level"], row["instance_id"], row["repeat"]): row["outcome"] for row in rows}
    expected = {
        (level, one, repeat): outcome
        for level in LEVELS
        for one, outcome in outcomes.items()
        for repeat in range(repeats)
    }
    assert len(rows) == len(found)
    assert found == expected
    assert not list(run.rglob("*.tmp"))
    record = json.loads((run / "run.json").read_text())
    assert record["ended"]
    for level, repeat in [(level, repeat) for level in LEVELS for repeat in range(repeats)]:
        assert record["levels"][level]["perplexity"] == 12.5
        _check_predictions(run / "levels" / level, repeat, outcomes)


def _check_predictions(folder: Path, repeat: int, outcomes: dict[str, str]) -> None:
    name = "predictions.jsonl" if repeat == 0 else f"predictions.{repeat}.jsonl"
    predictions = [json.loads(line) for line in (folder / name).read_text().splitlines()]
    assert [one["instance_id"] for one in predictions] == sorted(outcomes)
    for one in predictions:
        task = folder / "instances" / one["instance_id"] / str(repeat)
        assert one["model_patch"] == (task / "patch.diff").read_text()
        assert bool(one["model_patch"]) == (outcomes[one["instance_id"]] != "empty_patch")
        trajectory = json.loads((task / "trajectory.json").read_text())
        assert trajectory["ending"]["submitted"]
        assert trajectory["steps"][-1]["messages"] == len(trajectory["messages"])
        report = json.loads((task / "report.json").read_text())[one["instance_id"]]
        assert report["resolved"] == (outcomes[one["instance_id"]] == "resolved")


@dataclass
class KillDrill:
    """Kills a run with SIGKILL again and again, and checks after each kill what must hold on disk and among processes.

    Half of the kills fall shortly after a step has reached the disk, where renames and markers are; the others at any
    time of the run, its start and its end included.
    """

    config: Path
    outcomes: dict[str, str]
    repeats: int = 1
    seed: int = 7
    report: Callable[[str], None] = lambda line: None
    killed: Counter[str] = field(default_factory=Counter)

    def run(self, kills: int) -> None:
        """Kill so many times, then let the run end, and check its results."""
        root, choice = self.config.parent / "runs" / "one", random.Random(self.seed)
        finished: dict[Path, tuple[int, bytes]] = {}
        for number in range(1, kills + 1):
            process = start(self.config)
            if number % 2:
                wait_for_progress(process, root, len(finished))
                time.sleep(choice.uniform(0.0, 0.3))
            else:
                wait_for_end(process, choice.uniform(0.3, 4.0))
            self.killed["at work" if process.poll() is None else "after the end"] += 1
            process.kill()
            process.communicate()
            wait_for_no_process(root)
            _check_whole(root)
            check_kept(finished)
            finished |= {path: stamp(path) for name in ("agent", "task") for path in root.rglob(f"{name}.json")}
            self.report(f"kill {number}: {len(finished)} finished steps, all whole and unchanged")
        status, _, err = finish(start(self.config), timeout=600)
        assert status == 0, err
        check_results(root, self.outcomes, self.repeats)
        check_kept(finished)
        wait_for_no_process(root)


def wait_for_end(process: subprocess.Popen[str], seconds: float) -> None:
    """At most so long."""
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)


def wait_for_progress(process: subprocess.Popen[str], run: Path, known: int) -> None:
    """Until the process has put something new on disk that a kill could endanger, or has ended."""
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        if sum(1 for name in ("agent", "task") for _ in run.rglob(f"{name}.json")) > known:
            return
        time.sleep(0.01)


def _check_whole(run: Path) -> None:
    for path in [path for path in run.rglob("*.json") if not path.name.startswith(".")]:
        json.loads(path.read_text())
    for path in run.rglob("predictions*.jsonl"):
        assert all(json.loads(line) for line in path.read_text().splitlines())
    if (run / "results.parquet").exists():
        keys = [
            (row["level"], row["instance_id"], row["repeat"])
            for row in pq.read_table(run / "results.parquet").to_pylist()
        ]
        assert len(keys) == len(set(keys))


def stamp(path: Path) -> tuple[int, bytes]:
    """When a file was written, and what."""
    return path.stat().st_mtime_ns, path.read_bytes()


def check_kept(finished: dict[Path, tuple[int, bytes]]) -> None:
    """What was finished has not been done again."""
    for path, before in finished.items():
        assert stamp(path) == before, f"{path} was written again"


def wait_for_no_process(run: Path) -> None:
    """Guards and kernel end the servers and sandboxes of a killed run; this harness's own test runner may have some."""
    deadline = time.monotonic() + 15
    model = str(run.parents[1] / "model.json").encode()
    while left := [command for command in _read_commands() if model in command]:
        assert time.monotonic() < deadline, f"outlived the run: {left[0]!r}"
        time.sleep(0.02)
    while left := find_orphaned_sandboxes():
        assert time.monotonic() < deadline, f"a sandbox outlived its run: processes {left}"
        time.sleep(0.02)


def find_orphaned_sandboxes() -> Sequence[int]:
    """Holders of namespace sandboxes whose harness is gone: process 1 has adopted them."""
    orphans = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                command = (folder / "cmdline").read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if parent == 1 and b"jail.py" in command and b"hold" in command.split(b"\0"):
                orphans.append(int(folder.name))
    return orphans


def _read_commands() -> list[bytes]:
    commands = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid():
            try:
                commands.append((process / "cmdline").read_bytes())
            except (FileNotFoundError, ProcessLookupError):
                continue
    return commands
