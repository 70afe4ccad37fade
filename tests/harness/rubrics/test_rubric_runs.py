"""Whole rubric runs: a scripted engine at two levels, and stored answers, through the command line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from harness.errors import UserError
from harness.rubrics.examine import check_sandbox
from harness.rubrics.task import load_tasks
from harness.rubrics.toolchain import find_toolchain

ENGINE = [sys.executable, str(Path(__file__).parents[1] / "scripted_engine.py")]
TASK = load_tasks(("clean-markdown",))[0]


def sweq(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "harness", "rubrics", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def need_tools() -> None:
    try:
        find_toolchain()
        check_sandbox()
    except UserError as error:
        pytest.skip(str(error))


@pytest.mark.node
@pytest.mark.namespace
@pytest.mark.slow
def test_a_run_is_asked_scored_and_continued(tmp_path) -> None:
    need_tools()
    oracle = (TASK.folder / "answers" / "oracle.md").read_text()
    model = tmp_path / "model.json"
    model.write_text(json.dumps({"replies": {"cleanArticle": [oracle]}}))
    settings = {
        "name": "r", "model": str(model), "levels": ["bf16", "int4"], "tasks": ["clean-markdown"], "samples": 2,
        "endpoint": {"engine_command": ENGINE}, "results": str(tmp_path / "runs"),
    }  # fmt: skip
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(settings))
    first = sweq("-c", path, "--run-id", "one")
    assert first.returncode == 0, first.stderr
    run = tmp_path / "runs" / "one"
    summary = json.loads((run / "rubrics.json").read_text())
    assert [(level["level"], level["mean"]) for level in summary["levels"]] == [("bf16", 9.25), ("int4", 9.25)]
    assert (run / "rubrics.png").stat().st_size > 10_000
    scores = sorted(run.glob("levels/*/rubrics/*/*/score.json"))
    assert len(scores) == 4
    untouched = scores[0].stat().st_mtime_ns
    scores[1].unlink()
    again = sweq("-c", path, "--run-id", "one")
    assert again.returncode == 0, again.stderr
    assert scores[1].exists()
    assert scores[0].stat().st_mtime_ns == untouched
    assert "answers to ask for" not in again.stdout
    path.write_text(yaml.safe_dump({**settings, "samples": 3}))
    assert "config.samples was 2, is now 3" in sweq("-c", path, "--run-id", "one").stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "name a configuration with -c, or stored answers with --answers"),
        (("--answers", "nowhere"), "--answers nowhere: no such folder; expected <task>/<sample>.md in it"),
        (
            ("-c", "configs/rubrics.yaml", "--set", "tasks=[haiku]"),
            "configs/rubrics.yaml: tasks: no rubric task 'haiku'",
        ),
        (("-c", "configs/rubrics.yaml", "--set", "sample=3"), "unknown key (did you mean samples?)"),
    ],
)
def test_mistakes_are_one_line(arguments, message) -> None:
    done = sweq(*arguments)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
