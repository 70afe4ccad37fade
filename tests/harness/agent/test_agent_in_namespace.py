"""The agent in a real sandbox."""

import shutil
from pathlib import Path

import pytest
from agent_doubles import ScriptedModel, call, make_instance

from harness.agent.loop import Agent
from harness.config import AgentConfig, SamplingConfig
from harness.sandbox.namespace import NamespaceFactory, probe
from harness.tree import commit_tree

pytestmark = [pytest.mark.namespace, pytest.mark.skipif(probe() is not None, reason=probe() or "")]


@pytest.fixture
def tree(tmp_path):
    folder = tmp_path / "tree"
    folder.mkdir()
    (folder / "box.py").write_text("def area(a, b):\n    return a + b\n")
    return folder


def test_edits_commits_and_deletion_of_git_reach_the_patch(tree, tmp_path):
    fix = {"path": "box.py", "old": "a + b", "new": "a * b"}
    commit = "printf '\\377\\0' > raw.bin; git add -A; git commit -qm work && rm -rf .git; rm -rf /tmp/*"
    outside = {"path": "/usr/lib/x.py", "old": "", "new": "x"}
    model = ScriptedModel(call(("edit", fix), ("edit", outside), ("bash", {"command": commit})), call(("submit", "{}")))
    agent = Agent(model, AgentConfig(), SamplingConfig())
    base = commit_tree(Path(shutil.copytree(tree, tmp_path / "copy")))
    instance = make_instance(tree=tree, base_commit=base)
    with NamespaceFactory().create(instance) as sandbox:
        result = agent.run(instance, sandbox, seed=1, trajectory_path=tmp_path / "trajectory.json")
    assert result.submitted
    assert "+    return a * b\n" in result.patch
    assert "GIT binary patch" in result.patch
    told = [message["content"] for message in model.requests[1]["messages"] if message["role"] == "tool"]
    assert told[0] == "edited box.py at line 2"
    assert told[1].startswith("error: /usr/lib/x.py cannot be written")
    assert told[2].startswith("exit code: 0")
