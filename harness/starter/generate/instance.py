"""One generated instance and the observations that it was proved by."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """One observation of behaviour that the bug changes.

    `setup` is one simple statement a line (imports first), `call` a one-line expression. Neither they nor the results
    hold a double quote, backslash, backtick, `$` or `!`, so they can stand inside double quotes of a shell command.
    """

    setup: str
    call: str
    expected: str
    """What `print(call)` prints with the fixed code, or where that raises, the last line of the traceback."""
    actual: str
    """The same with the bug."""
    expects_error: bool = False
    gives_error: bool = False


@dataclass(frozen=True)
class GeneratedInstance:
    """A small package with one bug, its issue and its tests; everything follows from `part` and `seed`."""

    instance_id: str
    part: str
    seed: int
    family: str
    kind: str
    repo: str
    package: str
    base: Mapping[str, str]
    """Path to text: the buggy tree at the base commit."""
    bug_path: str
    """The one file that the gold patch changes."""
    fixed_text: str
    """That file's correct text."""
    patch: str
    test_patch: str
    problem_statement: str
    fail_to_pass: tuple[str, ...]
    pass_to_pass: tuple[str, ...]
    checks: tuple[Check, ...]
    """At least one; the first is the one that the issue shows."""
    subject: str
    """The function, method or class that the issue names; its `def` or `class` line is in `bug_path`."""
