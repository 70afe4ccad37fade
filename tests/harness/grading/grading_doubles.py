"""What the grading tests share: small instances, generated logs, a sandbox that is only a folder."""

import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from harness.errors import SandboxError
from harness.instances import Instance
from harness.sandbox.base import DEFAULT_OUTPUT_LIMIT, TESTBED, ExecResult
from harness.tree import commit_tree

START, END = "+ : '>>>>> Start Test Output'", "+ : '>>>>> End Test Output'"

STATUS_WORDS = ("PASSED", "FAILED", "SKIPPED", "ERROR", "XFAIL", "XPASS", "PASSED:", "ERRORS", "FAILED]")
TESTS = (
    "tests/test_a.py::test_one",
    "tests/test_a.py::test_two[a b]",
    "tests/test_a.py::test_three[log(photon /s)]",
    "tests/test_a.py::test_three[log(photon",
    "tests/test_a.py::test_path[/home/u/file.txt]",
    "tests/test_a.py::test_path[//host/file.txt]",
    "tests/test_a.py::test_glob[/home/*/file.txt]x]y",
    "tests/test_a.py::test_click[MouseButton.LEFT-MouseButton.RIGHT]",
    "tests/test_a.py::test_bold[1m]",
    "test_plain (app.tests.Case)",
    "test_plain (app.tests.Case.test_plain)",
    "Docstrings name tests too.",
    "test_sympy",
    "[100%]",
    "[3]",
)
LINE_SHAPES = (
    "{word} {test}",
    "{word} {test}",
    "{word} {test} - assert 1 - 2 == 3",
    "{word} - {test}",
    "{word}\t{test}  ",
    " {word} {test}",
    "{word}",
    "{test} {word}",
    "{test} {word} [ 50%]",
    "{test}{word}",
    "\x1b[31m{word}\x1b[0m {test} - \x1b[1mE\x1b[0m",
    "{test} \x1b[32m{word}\x1b[0m",
    "SKIPPED [2] tests/test_a.py:7: needs a display",
    "____ {test}.py:test_x ____",
    "__ sympy/core/tests/test_a.py:{test} __ {word}",
    "{test} ok",
    "  {test} F",
    "{test} E",
    "{test} ... ok",
    "{test} ...  OK",
    "{test} ... skipped 'no database'",
    "{test} ... FAIL",
    "{test} ... ERROR",
    "{test} ... expected failure",
    "{test} ... some output",
    "FAIL: {test}",
    "ERROR: {test}",
    "ok",
    "okay",
    "--version is equivalent to version ... ok",
    "Applying sites.0002_alter_domain_unique...test_no_migrations ({test}) ... ok",
    "{test} ... Testing against Django installed in '/x' with 2 processes\nnoise (0 silenced).\nok",
    "{test} ... Internal Server Error: /path/\nok",
    "{test} ... System check identified no issues (0 silenced)\nok",
    "collected 3 items",
    "",
)
RARE_LINES = ("FAIL:", "ERROR:  ", "PASSED ", " PASSED ", "FAILED - ", "\x0b\x0c PASSED x", "\u2028PASSED\u2028x")


def generate_lines(rng: random.Random, count: int) -> list[str]:
    """Lines of every runner mixed, some of them cut, glued together or sprinkled with escape codes."""
    lines = []
    for _ in range(count):
        shape = rng.choice(RARE_LINES) if rng.random() < 0.01 else rng.choice(LINE_SHAPES)
        line = shape.format(word=rng.choice(STATUS_WORDS), test=rng.choice(TESTS))
        fate = rng.random()
        if fate < 0.05:
            line = line[: rng.randrange(len(line) + 1)]
        elif fate < 0.1 and lines:
            line = lines.pop() + line
        elif fate < 0.15:
            place = rng.randrange(len(line) + 1)
            line = line[:place] + rng.choice(("\x1b[0m", "\x1b[1;31m", "\r", "\t", " ", "\x07", "\xa0")) + line[place:]
        lines.append(line)
    return lines


def make_instance(**changes: Any) -> Instance:
    """A small instance of our own; keyword arguments replace its fields."""
    fields: dict[str, Any] = {
        "instance_id": "sweq__tiny-1",
        "repo": "sweq/tiny",
        "base_commit": "0" * 40,
        "version": "1.0",
        "problem_statement": "answer() should be 42",
        "patch": "",
        "test_patch": "",
        "fail_to_pass": ("tests/test_a.py::test_one",),
        "pass_to_pass": (),
        "eval_script": "",
        "log_parser": "parse_log_pytest",
        "eval_type": "pass_and_fail",
    }
    return Instance(**(fields | changes))


def to_row(instance: Instance) -> dict[str, Any]:
    """The instance as an official dataset row."""
    row = {key: value for key, value in vars(instance).items() if key not in ("fail_to_pass", "pass_to_pass", "tree")}
    tests = {"FAIL_TO_PASS": list(instance.fail_to_pass), "PASS_TO_PASS": list(instance.pass_to_pass)}
    return {**row, **tests, "tree": str(instance.tree)} if instance.tree else {**row, **tests}


class FolderSandbox:
    """A sandbox that isolates nothing: `/testbed` and `/tmp` are folders under `root`. For trusted test input only."""

    def __init__(self, root: Path, tree: Path) -> None:
        self.root = root
        (root / "tmp").mkdir(parents=True)
        subprocess.run(["cp", "-r", str(tree), str(root / "testbed")], check=True)
        commit_tree(root / "testbed")
        self.commands: list[str] = []

    def _place(self, text: str) -> str:
        return re.sub("/testbed|/tmp/", lambda match: f"{self.root}{match[0]}", text)

    def exec(
        self,
        command: str,
        *,
        timeout: float,
        cwd: str = TESTBED,
        env: Mapping[str, str] | None = None,
        output_limit: int = DEFAULT_OUTPUT_LIMIT,
    ) -> ExecResult:
        self.commands.append(command)
        started = time.monotonic()
        process = subprocess.Popen(
            ["bash", "-c", self._place(command)],
            cwd=self._place(cwd),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            output, timed_out = process.communicate(timeout=timeout)[0], False
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, timed_out = process.communicate()[0], True
        code = 124 if timed_out else process.returncode
        return ExecResult(code, output.decode("utf-8", "replace"), timed_out, 0, time.monotonic() - started)

    def read_file(self, path: str) -> bytes:
        return Path(self._place(path)).read_bytes()

    def write_file(self, path: str, data: bytes, *, mode: int = 0o644) -> None:
        text = self._place(data.decode()).encode() if path.endswith(".sh") else data
        Path(self._place(path)).write_bytes(text)
        Path(self._place(path)).chmod(mode)

    def close(self) -> None:
        """Nothing to end: the folder goes with the test's."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class FolderFactory:
    """Makes `FolderSandbox`es under `root`; the first `failures` attempts raise `SandboxError`."""

    name = "folder"

    def __init__(self, root: Path, failures: int = 0) -> None:
        self.root = root
        self.failures = failures
        self.made: list[FolderSandbox] = []

    def create(self, instance: Instance) -> FolderSandbox:
        if self.failures > 0:
            self.failures -= 1
            raise SandboxError("Cannot connect to the Docker daemon")
        assert instance.tree is not None
        self.made.append(FolderSandbox(self.root / f"sandbox-{len(self.made)}", instance.tree))
        return self.made[-1]
