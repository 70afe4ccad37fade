"""Commits that depend on a folder's content alone."""

import os
import subprocess

import pytest

from harness.tree import commit_tree


@pytest.fixture
def make_tree(tmp_path):
    def make(name, content="value = 1\n"):
        folder = tmp_path / name
        (folder / "package").mkdir(parents=True)
        (folder / "package" / "module.py").write_text(content)
        (folder / ".gitignore").write_text("*.log\n")
        (folder / "kept.log").write_text("ignored files count too\n")
        return folder

    return make


def test_same_content_gives_the_same_commit(make_tree, monkeypatch):
    first = make_tree("first")
    second = make_tree("second")
    os.utime(second / "package" / "module.py", (0, 0))
    (second / "package" / "module.py").chmod(0o755)
    commit = commit_tree(first)
    monkeypatch.setenv("GIT_AUTHOR_NAME", "somebody else")
    assert commit_tree(second) == commit
    assert commit_tree(make_tree("third", "value = 2\n")) != commit


def test_byte_code_is_no_content(make_tree):
    plain, compiled = make_tree("plain"), make_tree("compiled")
    for folder in (compiled, compiled / "package"):
        (folder / "__pycache__").mkdir()
        (folder / "__pycache__" / "module.cpython-311.pyc").write_bytes(b"\x00")
    assert commit_tree(compiled) == commit_tree(plain)


def test_every_other_file_is_committed(make_tree):
    folder = make_tree("tree")
    commit = commit_tree(folder)
    listed = subprocess.run(
        ["git", "ls-tree", "-r", "--name-only", commit], cwd=folder, check=True, capture_output=True, text=True
    )
    assert listed.stdout.split() == [".gitignore", "kept.log", "package/module.py"]


def test_empty_folder(tmp_path):
    assert len(commit_tree(tmp_path)) == 40
