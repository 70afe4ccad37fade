"""Generated instances as SWE-bench dataset rows."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.starter.catalogue import CREATED_AT, EVAL_TYPE, LOG_PARSER, eval_script
from harness.starter.generate.instance import GeneratedInstance
from harness.tree import commit_tree, write_tree


def commit_files(files: Mapping[str, str]) -> str:
    """The commit id that `harness.tree.commit_tree` gives these files."""
    with tempfile.TemporaryDirectory(prefix="sweq-generate-") as scratch:
        write_tree(files, Path(scratch))
        return commit_tree(Path(scratch))


def to_row(instance: GeneratedInstance) -> dict[str, Any]:
    """The official columns as `harness.starter.catalogue` fills them, plus `tree`, `part`, `family` and `kind`.

    `tree` maps the paths of the base tree to text. `difficulty` names the part, so that reports that group by
    difficulty show the parts.
    """
    base_commit = commit_files(instance.base)
    return {
        "repo": instance.repo,
        "instance_id": instance.instance_id,
        "base_commit": base_commit,
        "patch": instance.patch,
        "test_patch": instance.test_patch,
        "problem_statement": instance.problem_statement,
        "hints_text": "",
        "created_at": CREATED_AT,
        "version": "1.0",
        "FAIL_TO_PASS": json.dumps(instance.fail_to_pass),
        "PASS_TO_PASS": json.dumps(instance.pass_to_pass),
        "environment_setup_commit": base_commit,
        "difficulty": instance.part,
        "eval_script": eval_script(base_commit, instance.test_patch, instance.base),
        "log_parser": LOG_PARSER,
        "eval_type": EVAL_TYPE,
        "image": None,
        "tree": dict(instance.base),
        "part": instance.part,
        "family": instance.family,
        "kind": instance.kind,
    }
