"""No way of git's leads from HEAD at start to what came after it."""

import subprocess

import pytest
from agent_doubles import FolderSandbox, ScriptedModel, call, make_instance

from harness.agent.history import forget_future
from harness.agent.loop import Agent
from harness.agent.trajectory import read_trajectory
from harness.config import AgentConfig, SamplingConfig
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


def test_an_agent_starts_without_a_future_and_its_start_is_recorded(box, tmp_path):
    fix = make_future(box)
    head = said(box, "echo set-up > u; echo set-up >> a.py; GIT_NO_REPLACE_OBJECTS=1 git rev-parse HEAD").strip()
    look = call(("bash", {"command": f"git cat-file -e {fix} && touch found; echo agent > made; git commit -qam work"}))
    agent = Agent(ScriptedModel(look, call(("submit", "{}"))), AgentConfig(), SamplingConfig())
    result = agent.run(make_instance(), box, seed=1, trajectory_path=tmp_path / "trajectory.json")
    assert result.patch.count("diff --git") == 1
    assert "b/made" in result.patch
    assert read_trajectory(tmp_path / "trajectory.json").info["history"]["head"] == head
