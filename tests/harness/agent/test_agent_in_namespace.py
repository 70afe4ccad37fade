"""The agent in a real sandbox."""

import pytest
from agent_doubles import ScriptedModel, call, make_instance

from harness.agent.loop import Agent
from harness.config import AgentConfig, SamplingConfig
from harness.sandbox.limits import Limits
from harness.sandbox.namespace import NamespaceFactory, probe
from harness.tree import commit_tree

pytestmark = [pytest.mark.namespace, pytest.mark.skipif(probe() is not None, reason=probe() or "")]


FIX = {"path": "box.py", "old": "a + b", "new": "a * b"}


@pytest.fixture
def work(tmp_path):
    """work(*replies) -> (result, what the tools said), in a sandbox with 64 MiB of disk."""
    trees = [tmp_path / "tree", tmp_path / "committed"]
    for folder in trees:
        folder.mkdir()
        (folder / "box.py").write_text("def area(a, b):\n    return a + b\n")
    instance = make_instance(tree=trees[0], base_commit=commit_tree(trees[1]))

    def run(*replies):
        model = ScriptedModel(*replies)
        with NamespaceFactory(Limits(disk_bytes=64 << 20)).create(instance) as sandbox:
            agent = Agent(model, AgentConfig(), SamplingConfig())
            result = agent.run(instance, sandbox, seed=1, trajectory_path=tmp_path / "trajectory.json")
        return result, [one["content"] for one in model.requests[-1]["messages"] if one["role"] == "tool"]

    return run


def test_edits_commits_and_deletion_of_git_reach_the_patch(work):
    commit = "printf '\\377\\0' > raw.bin; git add -A; git commit -qm work && rm -rf .git; rm -rf /tmp/* || true"
    outside = {"path": "/usr/lib/x.py", "old": "", "new": "x"}
    result, told = work(call(("edit", FIX), ("edit", outside), ("bash", {"command": commit})), call(("submit", "{}")))
    assert result.submitted
    assert "+    return a * b\n" in result.patch
    assert "GIT binary patch" in result.patch
    assert told[0] == "edited box.py at line 2"
    assert told[1].startswith("error: /usr/lib/x.py cannot be written")
    assert told[2].startswith("exit code: 0")


def test_a_full_disk_is_an_ordinary_end(work):
    fill = {"command": "head -c 500M /dev/zero > fill; head -c 500M /dev/zero > /tmp/fill"}
    more = {"path": "more.py", "old": "", "new": "x" * 100_000}
    result, told = work(call(("edit", FIX), ("bash", fill), ("edit", more)), call(("submit", "{}")))
    assert "No space left" in told[1]
    assert told[2].startswith("error: /testbed/more.py cannot be written")
    assert "+    return a * b\n" in result.patch
    assert "left out: file of more than 4194304 bytes: fill" in result.notes
