"""The starter set: twelve small repositories of our own in the SWE-bench dataset format.

Every instance is a folder `instances/<instance_id>/` with `base/` (the tree at the base commit), `issue.md`,
`gold.patch`, `test.patch` and `instance.yaml`. The rows carry the official column names, plus `tree`.
"""

import json
import re
from collections.abc import Container
from pathlib import Path
from typing import Any

import yaml

from harness.errors import UserError

INSTANCES = Path(__file__).parent / "instances"
CREATED_AT = "2024-01-01T00:00:00Z"
"""The date that `harness.tree.commit_tree` gives every base commit."""

LOG_PARSER = "parse_log_pytest"
EVAL_TYPE = "pass_and_fail"
_TEST_COMMAND = "python -m pytest -rA -p no:cacheprovider"
_HEREDOC = "EOF_114329324912"
_TARGET = re.compile(r"^diff --git a/.* b/(.*)$", re.MULTILINE)
_TEXT_KEYS = ("repo", "version", "difficulty", "base_commit")
_TEST_KEYS = ("FAIL_TO_PASS", "PASS_TO_PASS")


def load_rows(root: Path = INSTANCES) -> list[dict[str, Any]]:
    """Every instance under `root` as one dataset row, ordered by instance id.

    Columns are those of `SWE-bench/SWE-bench_Verified` (`FAIL_TO_PASS` and `PASS_TO_PASS` are JSON strings, `image`
    is None), plus `tree`, the `Path` of the base tree. Raises `UserError` where a folder lacks a file or a key.
    """
    return [load_row(folder) for folder in instance_folders(root)]


def instance_folders(root: Path = INSTANCES) -> list[Path]:
    """The instance folders under `root`, ordered by name; raises `UserError` when there is none."""
    folders = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    if not folders:
        raise UserError(f"{root}: holds no instance folders")
    return folders


def load_row(folder: Path) -> dict[str, Any]:
    """One instance folder as a dataset row; raises `UserError` naming the file and key that is missing or wrong."""
    tree = folder / "base"
    if not tree.is_dir():
        raise UserError(f"{tree}: missing; an instance needs the folder of its base tree")
    facts = read_facts(folder)
    for key in _TEXT_KEYS:
        if not isinstance(facts.get(key), str):
            raise UserError(f"{folder / 'instance.yaml'}: key {key!r} is missing or not a string")
    for key in _TEST_KEYS:
        tests = facts.get(key)
        if not isinstance(tests, list) or not all(isinstance(test, str) for test in tests):
            raise UserError(f"{folder / 'instance.yaml'}: key {key!r} is missing or not a list of test names")
    test_patch = read_text(folder / "test.patch")
    return {
        "repo": facts["repo"],
        "instance_id": folder.name,
        "base_commit": facts["base_commit"],
        "patch": read_text(folder / "gold.patch"),
        "test_patch": test_patch,
        "problem_statement": read_text(folder / "issue.md"),
        "hints_text": "",
        "created_at": CREATED_AT,
        "version": facts["version"],
        **{key: json.dumps(facts[key]) for key in _TEST_KEYS},
        "environment_setup_commit": facts["base_commit"],
        "difficulty": facts["difficulty"],
        "eval_script": eval_script(facts["base_commit"], test_patch, tree),
        "log_parser": LOG_PARSER,
        "eval_type": EVAL_TYPE,
        "image": None,
        "tree": tree,
    }


def read_facts(folder: Path) -> dict[str, Any]:
    """The mapping in the folder's `instance.yaml`; raises `UserError` when it is missing or no mapping."""
    path = folder / "instance.yaml"
    try:
        facts = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(facts, dict):
        raise UserError(f"{path}: should hold a mapping of keys such as {', '.join(_TEXT_KEYS)}")
    return facts


def read_text(path: Path) -> str:
    """The file's text; raises `UserError` when it is missing or empty."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; an instance needs this file") from error
    if not text.strip():
        raise UserError(f"{path}: is empty; an instance needs its content")
    return text


def directives(test_patch: str) -> list[str]:
    """Paths that the test patch touches and pytest can run: its `diff --git` targets that are Python files."""
    return [path for path in _TARGET.findall(test_patch) if path.endswith(".py")]


def eval_script(base_commit: str, test_patch: str, tree: Path | Container[str]) -> str:
    """The script that applies the test patch and runs its files between the official markers.

    `tree` is the base tree's folder, or the paths of its files.

    Its shape is that of the `eval_script` column of SWE-bench Verified without the conda lines. Where the official
    scripts hand `git checkout` a path that the base commit does not know (and so reset nothing at all), these reset
    only known files and remove the others. pytest loads no plugins, so that the verdict does not depend on what else
    is installed.
    """
    paths = _TARGET.findall(test_patch)
    there = {path for path in paths if ((tree / path).is_file() if isinstance(tree, Path) else path in tree)}
    known = " ".join(path for path in paths if path in there)
    added = " ".join(path for path in paths if path not in there)
    reset = [f"git checkout {base_commit} {known}"] * bool(known) + [f"rm -f {added}"] * bool(added)
    lines = [
        "#!/bin/bash",
        "set -uxo pipefail",
        "cd /testbed",
        "export PYTEST_DISABLE_PLUGIN_AUTOLOAD=1",
        "git config --global --add safe.directory /testbed",
        "git status",
        "git show",
        f"git -c core.fileMode=false diff {base_commit}",
        *reset,
        f"git apply -v - <<'{_HEREDOC}'",
        test_patch.rstrip("\n"),
        _HEREDOC,
        ": '>>>>> Start Test Output'",
        f"{_TEST_COMMAND} {' '.join(directives(test_patch))}",
        ": '>>>>> End Test Output'",
        *reset,
    ]
    return "\n".join(lines) + "\n"
