"""No way of git's leads from HEAD at start to what came after it."""

import subprocess

import pytest
from agent_doubles import FolderSandbox

from harness.agent.history import forget_future
from harness.errors import SandboxError

FILES = {"a.py": b"one\n"}
COMMIT = "git add -A && git commit -q -m"


@pytest.fixture
def box(tmp_path):
    return FolderSandbox(tmp_path / "box", FILES)


def said(box, command):
    result = box.exec(command, timeout=60)
    assert result.exit_code == 0, result.output
    return result.output


def make_future(box):
    """HEAD keeps a past of two commits and a tag; the fix lies behind every kind of reference. Returns its id."""
    return said(
        box,
        f"""
        set -e
        git tag v1
        echo two >> a.py; {COMMIT} two
        git checkout -q -b later
        echo the-fix >> a.py; {COMMIT} fix; git tag light; git tag -a heavy -m later
        git update-ref refs/remotes/origin/main HEAD; git update-ref refs/pull/1/head HEAD
        git remote add origin https://example.invalid/x; git config branch.main.remote origin
        echo stashed >> a.py; git stash -q
        git rev-parse HEAD
        git checkout -q main 2> /dev/null; git replace HEAD later; git gc -q; git branch -q -D later
        git update-ref ORIG_HEAD light; echo stray | git hash-object -w --stdin > /dev/null
        git worktree add -q --detach "$(mktemp -d)/w" light 2> /dev/null
        """,
    ).split()[0]


def test_nothing_of_the_future_is_left(box):
    fix = make_future(box)
    past = said(box, "GIT_NO_REPLACE_OBJECTS=1 git rev-list HEAD")
    assert said(box, f"git cat-file -t {fix}") == "commit\n"
    history = forget_future(box)
    assert history.head == past.split()[0]
    assert history.removed >= 8
    assert box.exec(f"git cat-file -e {fix}", timeout=30).exit_code != 0
    assert said(box, "git rev-list --all HEAD") == past
    assert said(box, "git for-each-ref --format='%(refname)'") == "refs/heads/main\nrefs/tags/v1\n"
    assert said(box, "git reflog; git remote; git stash list") == ""
    assert said(box, "git fsck --unreachable --no-reflogs 2>&1 | grep -v notice; git status --short; cat a.py") == (
        "one\ntwo\n"
    )
    assert box.exec("grep -rIl 'the-fix\\|later\\|example.invalid' .git", timeout=30).exit_code == 1


def test_a_clean_repository_is_not_rewritten(box):
    said(box, "git gc -q; rm -rf .git/logs")
    packs = said(box, "ls -i .git/objects/pack")
    assert forget_future(box).removed == 0
    assert said(box, "ls -i .git/objects/pack") == packs


def test_staged_and_unstaged_set_up_edits_stay(box):
    make_future(box)
    said(box, "echo staged > s; git add s; echo edit >> a.py; echo loose > u")
    look = "export GIT_NO_REPLACE_OBJECTS=1; git status --short; git diff; git diff --cached"
    before = said(box, look)
    forget_future(box)
    assert said(box, look) == before


def test_a_borrowed_object_store_is_left_behind(box, tmp_path):
    fix = make_future(box)
    subprocess.run(["mv", box.testbed, tmp_path / "lender"], check=True)
    subprocess.run(["git", "clone", "-q", "--shared", tmp_path / "lender", box.testbed], check=True)
    forget_future(box)
    subprocess.run(["rm", "-rf", tmp_path / "lender"], check=True)
    assert box.exec(f"git cat-file -e {fix}", timeout=30).exit_code != 0
    assert said(box, "git log --format=%s").split() == ["two", "base"]


def test_a_replacement_by_heads_own_commit_stays(box):
    named = "0123456789" * 4
    said(box, f"git update-ref refs/replace/{named} HEAD")
    forget_future(box)
    assert said(box, f"git show -s --format=%s {named}") == "base\n"


def test_no_repository_is_the_machines_failure(box):
    said(box, "rm -rf .git")
    with pytest.raises(SandboxError, match="later history cannot be removed"):
        forget_future(box)
