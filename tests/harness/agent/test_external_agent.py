"""Agents of others: budgets, trajectory, failures, and a real one in a sandbox without network."""

import os
import shlex
import sys
import threading
from pathlib import Path

import pytest
from agent_doubles import OVERFLOW, FolderSandbox, ScriptedModel, call, make_instance, say

from harness.agent.conversations import Conversations
from harness.agent.external import ExternalAgent
from harness.agent.forwarder import RefusedError, read_request
from harness.agent.limit import Limit
from harness.agent.loop import step_seed
from harness.agent.model import Usage
from harness.agent.trajectory import read_trajectory
from harness.config import AgentConfig, SamplingConfig
from harness.errors import EndpointError, SandboxError, UserError
from harness.sandbox.namespace import NamespaceFactory, probe
from harness.tree import commit_tree

OWN = Path(__file__).with_name("own_agent.py")
FIX = "sed -i 's/a + b/a * b/' box.py"
FIXED_LINE = "+    return a * b\n"
SOURCE = "def area(a, b):\n    return a + b\n"
MINI_VENV = os.environ.get("SWEQ_MINI_VENV", "")


def bash(command):
    return call(("bash", {"command": command}))


@pytest.fixture
def work(tmp_path):
    """work(model, *flags, **settings) -> (result, trajectory), for our own agent or `command`."""

    def run(model, *flags, box=None, command=None, on_step=None, env=None, folders=(), **settings):
        own = shlex.join([sys.executable, str(OWN), *flags])
        external = {"name": "own 1", "command": command or own, "env": env or {}, "folders": folders}
        config = AgentConfig(profile="external", external=external, **settings)
        agent = ExternalAgent(model, config, SamplingConfig(), level="int4")
        path = tmp_path / "out" / "trajectory.json"
        box = box or FolderSandbox(tmp_path / "box", {"box.py": SOURCE.encode()})
        try:
            return agent.run(make_instance(), box, seed=7, trajectory_path=path, on_step=on_step), read_trajectory(path)
        finally:
            run.trajectory = read_trajectory(path)

    return run


@pytest.mark.parametrize("flags", [(), ("--stream",)])
def test_an_agent_works_through_the_forwarder(work, flags):
    model, seen = ScriptedModel(bash("cat box.py"), bash(FIX), say("done")), []
    result, trajectory = work(model, *flags, on_step=seen.append)
    assert (result.submitted, result.limit, result.steps) == (True, Limit.NONE, 3)
    assert FIXED_LINE in result.patch
    assert seen == trajectory.steps
    assert [message["role"] for message in trajectory.messages] == [
        "user", "assistant", "tool", "assistant", "tool", "assistant",
    ]  # fmt: skip
    assert trajectory.messages[2]["content"] == SOURCE
    assert [step.new_tokens for step in trajectory.steps] == [110, 10, 10]
    assert [request["seed"] for request in model.requests] == [step_seed(7, number) for number in (1, 2, 3)]
    assert trajectory.info["overridden"] == ["model", "temperature"]
    assert trajectory.steps[0].actions[0].subject == '{"command": "cat box.py"}'


@pytest.mark.parametrize(
    ("limit", "replies", "settings"),
    [
        (Limit.STEPS, [bash(FIX)], {"step_limit": 3}),
        (Limit.TOKENS, [bash(FIX)], {"token_limit": 125}),
        (Limit.CONTEXT, [bash(FIX), OVERFLOW], {}),
        (Limit.CONTEXT, [bash(FIX)], {"context_limit": 110}),
        (Limit.WALL_CLOCK, [bash(f"{FIX}; sleep 60")], {"wall_clock": 3}),
    ],
    ids=["steps", "tokens", "refused", "counted", "clock"],
)
def test_every_limit_salvages_the_diff(work, limit, replies, settings):
    result, trajectory = work(ScriptedModel(*replies), **settings)
    assert (result.limit, result.submitted) == (limit, False)
    assert trajectory.ending.limit is limit
    assert FIXED_LINE in result.patch


def test_an_agent_that_does_not_heed_its_budget_is_killed(work):
    result, _ = work(ScriptedModel(bash(FIX)), "--stubborn", step_limit=2, wall_clock=60)
    assert (result.limit, result.steps) == (Limit.STEPS, 2)
    assert "the agent ended with exit code 137" in result.notes


def test_a_failing_server_is_raised_and_recorded(work):
    with pytest.raises(EndpointError, match="server died"):
        work(ScriptedModel(bash("true"), EndpointError("server died")), "--stubborn")
    assert "server died" in work.trajectory.ending.error
    assert len(work.trajectory.steps) == 1


def test_an_interrupted_run_ends_the_agent(work):
    def interrupt(step):
        raise EndpointError("the run was interrupted")

    with pytest.raises(EndpointError, match="interrupted"):
        work(ScriptedModel(bash("true")), on_step=interrupt)


@pytest.mark.parametrize(
    ("command", "kind", "message"),
    [
        ("no-such-agent --yes", UserError, "exit code 127 before it asked the model anything: .*not found"),
        ("echo broken; exit 1", SandboxError, "exit code 1 before it asked the model anything: broken"),
    ],
)
def test_an_agent_that_never_asks_is_named(work, tmp_path, command, kind, message):
    settings = AgentConfig(profile="external", external={"name": "x", "command": command})
    box = FolderSandbox(tmp_path / "box", {"box.py": SOURCE.encode()})
    agent = ExternalAgent(ScriptedModel(say("x")), settings, SamplingConfig())
    with pytest.raises(kind, match=message):
        agent.run(make_instance(), box, seed=1, trajectory_path=tmp_path / "t.json")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, "invalid_messages"),
        ({"messages": [{}], "tools": "bash"}, "invalid_tools"),
        ({"messages": [{}], "tool_choice": "required"}, "unsupported"),
        ({"messages": [{}], "n": 2}, "unsupported"),
        ({"messages": [{}], "max_tokens": -1}, "invalid_max_tokens"),
    ],
)
def test_what_would_change_the_answer_is_refused(body, code):
    with pytest.raises(RefusedError) as error:
        read_request(body)
    assert (error.value.status, error.value.code) == (400, code)


def test_conversations_are_told_apart_and_recognised_in_other_words():
    known = Conversations()
    ask = [{"role": "user", "content": "a"}]
    answer = call(("bash", {"command": "ls", "n": 1})).raw_message
    known.add(ask, answer, Usage(10, 1))
    known.add([{"role": "user", "content": "b"}], {"role": "assistant", "content": "x"}, Usage(20, 1))
    rewritten = {
        "role": "assistant", "content": None, "refusal": None,
        "tool_calls": [{"id": "other", "function": {"name": "bash", "arguments": '{"n":1,"command":"ls"}'}}],
    }  # fmt: skip
    parts = {"role": "user", "content": [{"type": "text", "text": "a"}]}
    assert known.find([parts, rewritten, {"role": "tool", "content": "out"}]) == (2, Usage(10, 1))
    assert known.find([*ask, {"role": "assistant", "content": "else"}]) == (0, None)


@pytest.fixture
def sandbox(tmp_path):
    """make(*folders): a namespace sandbox."""
    if reason := probe():
        pytest.skip(reason)
    trees = [tmp_path / "tree", tmp_path / "committed"]
    for folder in trees:
        folder.mkdir()
        (folder / "box.py").write_text(SOURCE)
    instance = make_instance(tree=trees[0], base_commit=commit_tree(trees[1]))
    opened = []

    def make(*folders):
        opened.append(NamespaceFactory(folders=folders).create(instance))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


@pytest.mark.namespace
def test_in_a_sandbox_the_forwarder_is_the_only_way_out(work, sandbox, tmp_path):
    agent = tmp_path / "agent"
    agent.mkdir()
    (agent / "own_agent.py").write_text(OWN.read_text())
    probing = "cat < /dev/tcp/1.1.1.1/80; env | grep -c KEY; touch $HOME/x; ls " + str(agent)
    model = ScriptedModel(bash(f"bash -c {shlex.quote(probing)}"), bash(FIX), say("done"))
    box = sandbox(agent)
    result, trajectory = work(model, box=box, command=f"python {agent}/own_agent.py", folders=[agent])
    assert result.submitted
    assert FIXED_LINE in result.patch
    told = trajectory.messages[2]["content"]
    assert "Network is unreachable" in told
    assert "own_agent.py" in told


@pytest.mark.namespace
def test_a_stubborn_agent_in_a_sandbox_is_gone_with_its_children(work, sandbox):
    box = sandbox(OWN.parent)
    command = f"python {OWN} --stubborn & sleep 600 & wait"
    result, _ = work(ScriptedModel(bash(FIX)), box=box, command=command, step_limit=1, wall_clock=60)
    assert (result.limit, result.steps) == (Limit.STEPS, 1)
    assert result.seconds_tools < 30
    assert threading.active_count() < 20


@pytest.mark.namespace
@pytest.mark.slow
@pytest.mark.skipif(
    not Path(MINI_VENV, "bin/mini").is_file() or not MINI_VENV,
    reason="SWEQ_MINI_VENV names no virtual environment with mini-swe-agent (pip install mini-swe-agent==2.4.6 mcp)",
)
def test_mini_swe_agent_solves_a_task(work, sandbox):
    submit = "echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT"
    model = ScriptedModel(bash("cat box.py"), bash(FIX), bash(submit))
    command = (
        f"{MINI_VENV}/bin/mini --yolo --exit-immediately --cost-limit 0 --model openai/$SWEQ_MODEL "
        '--output /tmp/mini.json --task "$(cat $SWEQ_TASK_FILE)"'
    )
    env = {
        "MSWEA_CONFIGURED": "true",
        "MSWEA_COST_TRACKING": "ignore_errors",
        "MSWEA_GLOBAL_CONFIG_DIR": "/tmp/mini",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }
    box = sandbox(Path(MINI_VENV))
    result, trajectory = work(model, box=box, command=command, env=env, wall_clock=60)
    assert (result.submitted, result.steps) == (True, 3)
    assert FIXED_LINE in result.patch
    assert [step.new_tokens for step in trajectory.steps] == [110, 10, 10]
    assert "return a + b" in str([message for message in trajectory.messages if message["role"] == "tool"])
