"""The interpreter may lie anywhere, also below folders that the sandbox has of its own."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from harness.sandbox.namespace import probe

PROJECT = Path(__file__).resolve().parents[3]
TRY = "from harness.sandbox.namespace import probe; print(probe())"


@pytest.mark.namespace
@pytest.mark.parametrize("parent", ["/tmp", "/home", "/var/tmp", "/opt"])
def test_works_with_the_interpreter_below(parent):
    if reason := probe():
        pytest.skip(reason)
    if not os.access(parent, os.W_OK):
        pytest.skip(f"{parent} cannot be written")
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", "--symlinks", f"{folder}/venv"], check=True)
        done = subprocess.run(
            [f"{folder}/venv/bin/python", "-c", TRY],
            env={**os.environ, "PYTHONPATH": f"{PROJECT}:{Path(pytest.__file__).parents[1]}"},
            capture_output=True,
            text=True,
        )
    assert (done.stdout.strip(), done.stderr) == ("None", "")
