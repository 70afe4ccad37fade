"""`python -m harness.starter.build [--check]`: what the starter instances' test lists and base commits should be.

The tests named by `test.patch` run in temporary copies of `base/`, before and after `gold.patch`: a test that passes
only afterwards is FAIL_TO_PASS, one that passes both times PASS_TO_PASS.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from harness.errors import UserError
from harness.starter.catalogue import INSTANCES, directives, instance_folders, read_facts, read_text
from harness.tree import commit_tree

_TIMEOUT = 120.0


def copy_base(folder: Path, target: Path) -> str:
    """Copy the instance's base tree to `target` as a git repository; returns the base commit's id."""
    shutil.copytree(folder / "base", target)
    return commit_tree(target)


def apply_patch(patch: Path, tree: Path) -> None:
    """Apply a unified diff with `git apply`; raises `UserError` with git's reason when it does not fit."""
    done = subprocess.run(
        ["git", "apply", "--whitespace=error-all", str(patch.resolve())], cwd=tree, capture_output=True, text=True
    )
    if done.returncode:
        raise UserError(f"{patch}: does not apply: {' '.join(done.stderr.split())}")


def run_tests(tree: Path, files: Sequence[str]) -> dict[str, str]:
    """Run pytest on `files` in `tree`, as the eval script does; status word (PASSED, FAILED, ...) per node id.

    Raises `UserError` when the tests hang.
    """
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    environment = {**inherited, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-m", "pytest", "-rA", "--color=no", "-p", "no:cacheprovider", *files]
    try:
        done = subprocess.run(
            command,
            cwd=tree,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_TIMEOUT,
        )
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{tree}: tests still running after {_TIMEOUT:.0f} s") from error
    summary = done.stdout.rpartition("short test summary info")[2]
    words = (line.split(" - ")[0].split(" ", 1) for line in summary.splitlines())
    return {pair[1]: pair[0] for pair in words if len(pair) == 2 and pair[0].isupper()}


def passed(statuses: Mapping[str, str]) -> set[str]:
    """The tests that passed."""
    return {test for test, status in statuses.items() if status == "PASSED"}


def measure(folder: Path) -> dict[str, Any]:
    """What `base_commit`, FAIL_TO_PASS and PASS_TO_PASS of the instance should be.

    Raises `UserError` when a patch does not apply, a test fails even with the gold patch, or none changes with it.
    """
    files = directives(read_text(folder / "test.patch"))
    with tempfile.TemporaryDirectory(prefix="sweq-starter-") as scratch:
        tree = Path(scratch) / folder.name
        base_commit = copy_base(folder, tree)
        apply_patch(folder / "test.patch", tree)
        before = run_tests(tree, files)
        apply_patch(folder / "gold.patch", tree)
        after = run_tests(tree, files)
    good = passed(after)
    if good != set(after):
        raise UserError(f"{folder / 'gold.patch'}: tests that still fail: {', '.join(sorted(set(after) - good))}")
    spaced = sorted(test for test in good if " " in test)
    if spaced:
        raise UserError(f"{folder}: test name with a space, which SWE-bench's log parsers cut off: {spaced[0]!r}")
    uncollected = sorted(good - set(before))
    if uncollected:
        raise UserError(f"{folder / 'test.patch'}: cannot even be collected without the gold patch: {uncollected[0]}")
    if not good - passed(before):
        raise UserError(f"{folder / 'test.patch'}: no test fails without the gold patch")
    return {
        "base_commit": base_commit,
        "FAIL_TO_PASS": sorted(good - passed(before)),
        "PASS_TO_PASS": sorted(good & passed(before)),
    }


def refresh(folder: Path, *, check: bool) -> list[str]:
    """Keys of the folder's `instance.yaml` that are stale; unless `check`, they are written anew."""
    facts = read_facts(folder)
    fresh = measure(folder)
    stale = [key for key, value in fresh.items() if facts.get(key) != value]
    if stale and not check:
        text = yaml.safe_dump({**facts, **fresh}, sort_keys=False, width=1000)
        (folder / "instance.yaml").write_text(text, encoding="utf-8")
    return stale


def main(arguments: Sequence[str] | None = None) -> int:
    """Refresh (or with `--check` only compare) every instance; exit status 1 when `--check` finds one stale."""
    parser = argparse.ArgumentParser(prog="python -m harness.starter.build", description=__doc__)
    parser.add_argument("ids", nargs="*", help="instance ids; none means all")
    parser.add_argument("--check", action="store_true", help="write nothing; fail when an instance.yaml is stale")
    options = parser.parse_args(arguments)
    failed = False
    for folder in _chosen(options.ids):
        stale = refresh(folder, check=options.check)
        failed = failed or (options.check and bool(stale))
        news = f"{'stale' if options.check else 'wrote'} {', '.join(stale)}" if stale else "up to date"
        print(f"{folder.name}: {news}")
    return int(failed)


def _chosen(ids: Sequence[str]) -> list[Path]:
    folders = {folder.name: folder for folder in instance_folders(INSTANCES)}
    unknown = [name for name in ids if name not in folders]
    if unknown:
        raise UserError(f"unknown instance {unknown[0]!r}; known are {', '.join(folders)}")
    return [folders[name] for name in ids] if ids else list(folders.values())


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        print(f"sweq: {error}", file=sys.stderr)
        sys.exit(2)
