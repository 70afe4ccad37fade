"""Exit statuses and the one line that a user's mistake gets."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def sweq(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "harness", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)


def test_help_is_quick_and_lists_the_commands() -> None:
    start = time.monotonic()
    done = sweq("--help")
    assert done.returncode == 0
    assert time.monotonic() - start < 5
    for command in ("eval", "grade", "regrade", "compare", "report", "images", "doctor"):
        assert command in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["eval", "-c", "nope.yaml"], "sweq: nope.yaml: cannot be read"),
        (["eval", "-c", "configs/demo.yaml", "--set", "agent.stepp=1"], "--set agent.stepp: unknown key"),
        (["eval", "-c", "configs/demo.yaml", "--set", "dataset=none.parquet"], "none.parquet"),
        (["eval"], "sweq: Missing option '--config' / '-c'"),
        (["grade", "--sandbox", "vm", "--dataset", "starter", "--predictions", "gold"], "'--sandbox': "),
        (["images"], "sweq: Missing command"),
        (["solve"], "sweq: No such command 'solve'"),
        (["eval", "-c", "configs/demo.yaml", "--run-id", "../x"], "--run-id '../x': expected a plain name"),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments: list[str], message: str) -> None:
    done = sweq(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_doctor_says_one_line_each() -> None:
    done = sweq("doctor")
    lines = done.stdout.strip().splitlines()
    checks = ["git:", "docker:", "namespaces:", "sandboxes:", "disk:", "memory:", "engine:"]
    assert [line.split()[1] for line in lines] == checks
