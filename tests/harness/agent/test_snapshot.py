"""The harness's own diff: complete, applicable, and without a trace in the agent's repository."""

import subprocess

import pytest
from agent_doubles import FolderSandbox
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.agent import snapshot as module
from harness.agent.snapshot import Snapshot
from harness.errors import SandboxError

FILES = {
    "pkg/a.py": b"one\ntwo\n",
    "pkg/b.py": b"bee\n",
    "data.bin": bytes(range(256)) * 4,
    "latin.txt": "caf\xe9\n".encode("latin-1"),
    ".gitignore": b"*.log\n",
    "old.log": b"tracked although ignored\n",
}


@pytest.fixture
def box(tmp_path):
    return FolderSandbox(tmp_path / "box", FILES)


def files_of(folder):
    """Path -> content of every file or link that is not git's."""
    return {
        str(path.relative_to(folder)): str(path.readlink()).encode() if path.is_symlink() else path.read_bytes()
        for path in folder.rglob("*")
        if ".git" not in path.relative_to(folder).parts and (path.is_symlink() or path.is_file())
    }


def apply_to_fresh_copy(patch, folder, files=None):
    """The files of a fresh tree after `git apply`, by git itself."""
    fresh = FolderSandbox(folder, files or FILES)
    if patch:
        subprocess.run(["git", "apply", "-"], input=patch.encode(), cwd=fresh.testbed, check=True)
    return files_of(fresh.testbed)


def git_state(box):
    """Everything in `.git`, byte for byte."""
    folder = box.testbed / ".git"
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


CHANGES = {
    "nothing": "true",
    "edit": "echo three >> pkg/a.py",
    "new files": "mkdir -p new/deep && echo x > new/deep/file.py && printf 'no newline' > 'with space.txt'",
    "deletion": "rm -r pkg/b.py data.bin",
    "binary": "head -c 3000 /dev/urandom > data.bin && head -c 100 /dev/urandom > fresh.bin",
    "not UTF-8": "printf 'th\\351\\n' >> latin.txt; echo more >> pkg/a.py",
    "tracked but ignored": "echo more >> old.log",
    "rename": "git mv pkg/a.py pkg/c.py",
    "symlink": "ln -s pkg/a.py link && rm pkg/b.py && ln -s a.py pkg/b.py",
    "crlf": "printf 'x\\r\\ny\\r\\n' > crlf.txt",
    "strange names": "echo 1 > 'é ü.py'; echo 2 > $'tab\\there'; echo 3 > ':(top)x'; echo 4 > '-q'",
    "staged": "echo s >> pkg/a.py && git add -A && echo t >> pkg/a.py",
    "commits": "echo c >> pkg/a.py && git commit -qam work && git checkout -qb other && git rm -q pkg/b.py",
    "orphan": "echo c >> pkg/a.py && git checkout -q --orphan x && git commit -qam x && git branch -D main -q",
    "no git": "echo c >> pkg/a.py && rm -rf .git",
    "new git": "rm -rf .git && git init -q && echo c >> pkg/a.py && git add -A && git commit -qm mine",
    "hostile configuration": "echo c >> pkg/a.py && git config core.worktree /nowhere && git config core.bare true"
    " && git config diff.external false && git config filter.f.clean false && echo '* filter=f' > .git/info/attributes",
    "locked index": "echo c >> pkg/a.py && touch .git/index.lock",
    "emptied": "git rm -qr . && rm -rf * ",
    "folder becomes file": "rm -r pkg && echo file > pkg",
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_patch_rebuilds_the_agents_tree(box, tmp_path, change):
    snapshot = Snapshot.take(box)
    assert box.exec(change, timeout=30).exit_code == 0
    before = git_state(box)
    diff = snapshot.diff()
    assert git_state(box) == before
    assert apply_to_fresh_copy(diff.patch, tmp_path / "fresh") == files_of(box.testbed)
    assert (diff.patch == "") == (change == "true")
    assert diff.notes == ()
    assert snapshot.diff() == diff


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.sampled_from(["pkg/a.py", "pkg/b.py", "data.bin", "latin.txt", "n1", "pkg/n2", "d/e/n3"]),
        st.none() | st.binary(max_size=60) | st.text(max_size=60).map(str.encode),
        max_size=5,
    )
)
def test_patch_rebuilds_any_content(tmp_path_factory, changes):
    folder = tmp_path_factory.mktemp("any")
    box = FolderSandbox(folder / "box", FILES)
    snapshot = Snapshot.take(box)
    for name, content in changes.items():
        if content is None:
            (box.testbed / name).unlink(missing_ok=True)
        else:
            box.write_file(f"/testbed/{name}", content)
    assert apply_to_fresh_copy(snapshot.diff().patch, folder / "fresh") == files_of(box.testbed)


def test_ignored_files_stay_out(box):
    snapshot = Snapshot.take(box)
    box.exec("echo noise > build.log", timeout=30)
    assert snapshot.diff().patch == ""


def test_what_lay_there_before_the_agent_is_no_part_of_the_diff(box):
    box.exec("echo set-up >> pkg/a.py; echo scratch > untracked.txt; rm pkg/b.py; echo s > s; git add s", timeout=30)
    snapshot = Snapshot.take(box)
    assert snapshot.diff().patch == ""
    box.exec("echo agent >> untracked.txt", timeout=30)
    assert snapshot.diff().patch.count("diff --git") == 1


def test_taking_the_snapshot_leaves_the_repository_alone(box):
    before = git_state(box), files_of(box.testbed)
    Snapshot.take(box)
    assert (git_state(box), files_of(box.testbed)) == before


def test_nested_repositories_are_left_out_and_named(box):
    box.exec("mkdir there && cd there && git init -q", timeout=30)
    snapshot = Snapshot.take(box)
    box.exec("mkdir 'my repo' && cd 'my repo' && git init -q && echo x > x && cd .. && echo y >> pkg/a.py", timeout=30)
    diff = snapshot.diff()
    assert diff.patch.count("diff --git") == 1
    assert diff.notes == ("left out: untracked files of the repository inside: my\\ repo",)


def test_tracked_folder_made_a_repository_keeps_its_changes(box, tmp_path):
    snapshot = Snapshot.take(box)
    box.exec("cd pkg && git init -q && echo c >> a.py && rm b.py", timeout=30)
    assert apply_to_fresh_copy(snapshot.diff().patch, tmp_path / "fresh") == files_of(box.testbed)


def test_large_files_and_large_diffs_have_a_clear_end(box, monkeypatch):
    snapshot = Snapshot.take(box)
    box.exec(f"head -c {module.FILE_LIMIT + 1} /dev/zero > huge; echo x >> pkg/a.py", timeout=30)
    diff = snapshot.diff()
    assert diff.patch.count("diff --git") == 1
    assert diff.notes == (f"left out: file of more than {module.FILE_LIMIT} bytes: huge",)
    monkeypatch.setattr(module, "DIFF_LIMIT", 10)
    diff = snapshot.diff()
    assert diff.patch == ""
    assert "more than the 10 allowed" in diff.notes[-1]


def test_destroyed_record_is_said(box):
    snapshot = Snapshot.take(box)
    box.exec("rm -rf /tmp/.sweq-snapshot", timeout=30)
    assert snapshot.diff().notes == ("the record of the start was destroyed inside the sandbox",)


def test_no_repository_is_the_machines_failure(box):
    box.exec("rm -rf .git", timeout=30)
    with pytest.raises(SandboxError, match="/testbed cannot be recorded"):
        Snapshot.take(box)
