"""What the agent's tools would answer in a sandbox, for the few commands that the expert runs.

Commands and their results are made together. A test holds both against a real sandbox, byte for byte.
"""

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass

from harness.agent.prompts import load_prompts
from harness.agent.sandbox_files import EditError
from harness.agent.tools import Edit, replace_once
from harness.starter.generate import Check
from harness.starter.generate.execution import load_package, observe, run_in
from harness.starter.generate.family import Probe
from harness.starter.generate.limits import Endless

_SUGGESTING = ("AttributeError", "NameError", "ImportError")
"""Errors behind whose text some versions of Python suggest another name."""


@dataclass(frozen=True)
class Done:
    """A call and what it gave. `observation` is the tool message, `output` the last line that a command printed."""

    tool: str
    arguments: Mapping[str, str]
    observation: str
    output: str = ""


class Testbed:
    """The repository of one instance, with its files as text by path; `package` is the one that its code is in."""

    def __init__(self, files: Mapping[str, str], package: str) -> None:
        self.files = dict(files)
        self._base = dict(files)
        self._package = package

    def list_files(self) -> Done:
        """`git ls-files`."""
        return _bash("git ls-files", "".join(f"{path}\n" for path in sorted(self._base)))

    def search(self, name: str) -> Done:
        """Where a function or class is defined: `path:line:text` for each."""
        pattern = re.compile(rf"(def|class) {name}\b")
        hits = [
            f"{path}:{number}:{line}\n"
            for path in sorted(self.files)
            for number, line in enumerate(self.files[path].splitlines(), start=1)
            if pattern.search(line)
        ]
        return _bash(f'git grep -nE "(def|class) {name}\\b"', "".join(hits), exit_code=0 if hits else 1)

    def show(self, path: str) -> Done:
        """The file's text."""
        return _bash(f"cat {path}", self.files[path])

    def restore(self, path: str) -> Done:
        """Take back every change of the file."""
        self.files[path] = self._base[path]
        return _bash(f"git checkout -q {path}", "")

    def edit(self, path: str, old: str, new: str) -> Done:
        """Replace `old` by `new`, which an error may forbid."""
        text = self.files[path]
        try:
            self.files[path] = replace_once(text, Edit(path, old, new))
            told = f"edited {path} at line {text[: text.index(old)].count(chr(10)) + 1}"
        except EditError as error:
            told = f"error: {error}"
        return Done("edit", {"path": path, "old": old, "new": new}, told)

    def run(self, check: Check, known: str | None = None) -> Done | None:
        """Print what the check's call gives, or the last line of its traceback; None where that cannot be simulated.

        `known` is the result where it need not be found out.
        """
        shown = self._evaluate(check) if known is None else known
        if shown is None or "\n" in shown or shown.startswith(_SUGGESTING):
            return None
        statements = "; ".join([*check.setup.split("\n"), f"print({check.call})"])
        return _bash(f'python -c "{statements}" 2>&1 | tail -n 1', f"{shown}\n")

    def test(self, path: str, randomness: random.Random) -> Done:
        """Run a test file in which every test passes. How long it takes is drawn."""
        count = len(re.findall(r"^def test_", self.files[path], re.MULTILINE))
        printed = f"{count} passed in 0.0{randomness.randint(1, 4)}s\n"
        return _bash(f"python -m pytest -q {path} 2>&1 | tail -n 1", printed)

    def submit(self) -> Done:
        """The end."""
        return Done("submit", {}, "submitted")

    def _evaluate(self, check: Check) -> str | None:
        try:
            modules = load_package(self._package, self.files)
        except MemoryError:
            raise
        except (Exception, Endless):
            return None
        namespace: dict[str, object] = {}
        run_in(namespace, "", modules)
        outcome = observe(namespace, Probe(check.call, tuple(check.setup.split("\n"))))
        return None if outcome is None else outcome.shown


def _bash(command: str, output: str, exit_code: int = 0) -> Done:
    shown = output or "(no output)"
    observation = load_prompts("tools").fill("observation", exit_code=exit_code, output=shown)
    return Done("bash", {"command": command}, observation, output.removesuffix("\n"))
