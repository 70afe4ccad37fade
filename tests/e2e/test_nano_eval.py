"""`sweq eval` with sweq-nano: served, worked, graded and counted for real, and not in vain."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from nano_work import MAX_TOKENS, near_instances

from harness.sandbox.namespace import probe
from harness.starter.archive import STARTER_500
from nano.data.conversation import COMMAND_TIMEOUT, LONGEST_CONTEXT, STEP_LIMIT
from nano.data.tokenizer import MODEL

PLACES = {os.path.realpath(sys.prefix), os.path.realpath(sys.base_prefix), os.path.abspath(sys.prefix)}
"""What of Python a sandbox shows."""
BORROWED = not any(Path(pytest.__file__).is_relative_to(place) for place in PLACES)

pytestmark = [
    pytest.mark.namespace,
    pytest.mark.slow,
    pytest.mark.skipif(probe() is not None, reason=probe() or ""),
    pytest.mark.skipif(BORROWED, reason="pytest is not installed beside the interpreter, where sandboxes look for it"),
]


def write_config(folder: Path) -> Path:
    content = {
        "name": "nano",
        "dataset": STARTER_500,
        "instances": [instance.instance_id for instance in near_instances(3)],
        "model": str(MODEL),
        "levels": ["bf16", "int8"],
        "endpoint": {"max_context": LONGEST_CONTEXT},
        "agent": {"profile": "tools", "step_limit": STEP_LIMIT, "command_timeout": COMMAND_TIMEOUT},
        "sampling": {"temperature": 0, "max_tokens": MAX_TOKENS},
        "sandbox": "namespace",
        "agent_workers": 3,
        "grading_workers": 1,
        "results": str(folder / "runs"),
    }
    path = folder / "nano.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_sweq_eval_ends_with_resolved_instances(tmp_path: Path) -> None:
    """Two of three at bf16: all three are resolved where this was written, and decoding is greedy, so that nothing is
    drawn; another processor rounds otherwise, but the choices that the model makes here are far from ties
    (`test_nano_paths`), and one instance of the three may be lost to one all the same."""
    command = [sys.executable, "-m", "harness", "eval", "-c", str(write_config(tmp_path)), "--run-id", "one"]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert finished.returncode == 0, finished.stderr
    run = tmp_path / "runs" / "one"
    rows = pq.read_table(run / "results.parquet").to_pylist()
    assert {(row["level"], row["instance_id"]) for row in rows} == {
        (level, instance.instance_id) for level in ("bf16", "int8") for instance in near_instances(3)
    }
    resolved = {level: sum(row["resolved"] for row in rows if row["level"] == level) for level in ("bf16", "int8")}
    assert resolved["bf16"] >= 2, rows
    assert resolved["int8"] >= 1, rows
    record = json.loads((run / "run.json").read_text())
    assert [record["levels"][level]["identity"]["quant"] for level in resolved] == ["bf16", "int8"]
