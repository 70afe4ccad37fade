"""A folder becomes a git repository whose commit id depends on its content alone."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

_IDENTITY = {
    "GIT_AUTHOR_NAME": "sweq",
    "GIT_AUTHOR_EMAIL": "sweq@localhost",
    "GIT_AUTHOR_DATE": "2024-01-01T00:00:00+0000",
    "GIT_COMMITTER_NAME": "sweq",
    "GIT_COMMITTER_EMAIL": "sweq@localhost",
    "GIT_COMMITTER_DATE": "2024-01-01T00:00:00+0000",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
}


def write_tree(files: Mapping[str, str], folder: Path) -> None:
    """Write text files below `folder`, which is made if it is missing; `files` maps relative paths to text."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="")


def commit_tree(folder: Path) -> str:
    """Make `folder` a git repository with one commit of all its files; returns the commit's id (40 hex digits).

    Byte code is left out: installing the package, or running the tests of a tree in place, puts some into it.
    """
    environment = {**os.environ, **_IDENTITY}

    def git(*arguments: str) -> str:
        command = ["git", "-c", "core.autocrlf=false", "-c", "core.fileMode=false", *arguments]
        return subprocess.run(
            command, cwd=folder, env=environment, check=True, capture_output=True, text=True
        ).stdout.strip()

    git("init", "-q", "-b", "main")
    git("add", "-A", "-f", "--", ".", ":(exclude,glob)**/__pycache__/**")
    git("commit", "-q", "--allow-empty", "-m", "base")
    return git("rev-parse", "HEAD")
