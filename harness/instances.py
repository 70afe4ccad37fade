"""One SWE-bench row, validated."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Instance:
    """One dataset row. The agent may see `problem_statement` and the repository, never the patches or test names.

    `image` is the official image's name, or None where the instance brings its base tree along in `tree`
    (a folder that becomes `/testbed`, committed as `base_commit`).
    """

    instance_id: str
    repo: str
    base_commit: str
    version: str
    problem_statement: str
    patch: str
    test_patch: str
    fail_to_pass: tuple[str, ...]
    pass_to_pass: tuple[str, ...]
    eval_script: str
    log_parser: str
    eval_type: str
    image: str | None = None
    difficulty: str = ""
    tree: Path | None = None
