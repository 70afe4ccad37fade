"""The loop: every end, what the model is told, what stays on disk."""

import itertools
import json

import pytest
from agent_doubles import OVERFLOW, BrokenSandbox, FolderSandbox, ScriptedModel, bash_block, call, make_instance, say

from harness.agent.limit import Limit
from harness.agent.loop import Agent, step_seed
from harness.agent.model import RequestTimeoutError, Usage
from harness.agent.prompts import load_prompts
from harness.agent.trajectory import read_trajectory
from harness.config import AgentConfig, SamplingConfig
from harness.errors import EndpointError, SandboxError

FILES = {"box.py": b"def area(a, b):\n    return a + b\n", "README": b"boxes\n"}
FIX = "sed -i 's/a + b/a * b/' box.py"
FIXED_LINE = "+    return a * b\n"
HEAD = 2 + len(load_prompts("text").demonstration)  # system, worked example, task


@pytest.fixture
def sandbox(tmp_path):
    return FolderSandbox(tmp_path / "box", FILES)


@pytest.fixture
def work(tmp_path, sandbox):
    """work(model, **agent settings) -> (result, trajectory)."""

    def run(model, *, box=None, sampling=None, on_step=None, **settings):
        config = AgentConfig(**{"profile": "text", **settings})
        agent = Agent(model, config, sampling or SamplingConfig(), level="int4")
        path = tmp_path / "out" / "trajectory.json"
        result = agent.run(make_instance(), box or sandbox, seed=7, trajectory_path=path, on_step=on_step)
        return result, read_trajectory(path)

    return run


def test_text_profile_fixes_a_bug_and_submits(work):
    model = ScriptedModel(bash_block("cat box.py"), bash_block(FIX), bash_block("submit"))
    seen = []
    result, trajectory = work(model, on_step=seen.append)
    assert (result.submitted, result.limit, result.steps) == (True, Limit.NONE, 3)
    assert FIXED_LINE in result.patch
    assert result.usage == Usage(300, 30, 270)
    assert result.seconds_model == 1.5
    assert seen == trajectory.steps
    assert "return a + b" in trajectory.messages[HEAD + 1]["content"]
    assert trajectory.ending.patch_bytes == len(result.patch)
    assert trajectory.info["level"] == "int4"
    assert all(request["tools"] is None for request in model.requests)


def test_tools_profile_edits_and_submits(work):
    edit = {"path": "box.py", "old": "a + b", "new": "a * b"}
    model = ScriptedModel(call(("bash", {"command": "ls"}), ("edit", edit)), call(("submit", ""), ("bash", {})))
    result, trajectory = work(model, profile="tools")
    assert result.submitted
    assert FIXED_LINE in result.patch
    told = [message for message in trajectory.messages if message["role"] == "tool"]
    assert [message["tool_call_id"] for message in told] == ["id0", "id1", "id0"]
    assert told[1]["content"] == "edited box.py at line 2"
    assert [action.kind for action in trajectory.steps[1].actions] == ["submit"]
    assert {tool["function"]["name"] for tool in model.requests[0]["tools"]} == {"bash", "edit", "submit"}


def test_mini_profile_has_bash_alone(work):
    model = ScriptedModel(
        call(("submit", {})), call(("bash", {"command": FIX})), call(("bash", {"command": "echo SWEQ_SUBMIT"}))
    )
    result, trajectory = work(model, profile="mini")
    assert result.submitted
    assert FIXED_LINE in result.patch
    assert [tool["function"]["name"] for tool in model.requests[0]["tools"]] == ["bash"]
    assert "there is only bash" in trajectory.messages[3]["content"]


def test_editor_profile_shows_the_changes_before_the_last_submission(work):
    fix = {"command": "str_replace", "path": "/testbed/box.py", "old_str": "a + b", "new_str": "a * b"}
    twice = call(("submit", ""), ("submit", ""))
    result, trajectory = work(
        ScriptedModel(
            call(("str_replace_editor", fix)), twice, call(("bash", {"command": "ls"})), call(("submit", ""))
        ),
        profile="editor",
    )
    assert (result.submitted, result.steps) == (True, 4)
    told = [message["content"] for message in trajectory.messages if message["role"] == "tool"]
    assert FIXED_LINE in told[1]
    assert told[1].startswith("Not handed in yet")
    assert told[1] == told[2]
    assert [action.kind for step in trajectory.steps for action in step.actions] == [
        "editor", "submit", "submit", "bash", "submit",
    ]  # fmt: skip
    assert trajectory.steps[0].actions[0].subject == "str_replace /testbed/box.py"


def test_review_of_no_changes_says_so_and_a_limit_after_it_keeps_the_diff(work):
    _, trajectory = work(ScriptedModel(call(("submit", ""))), profile="editor", step_limit=1)
    assert "(no changes)" in trajectory.messages[-1]["content"]
    change = call(("bash", {"command": FIX}), ("submit", ""))
    result, _ = work(ScriptedModel(change), profile="editor", step_limit=1)
    assert (result.limit, result.submitted) == (Limit.STEPS, False)
    assert FIXED_LINE in result.patch


def test_sentinel_submits_only_where_the_command_succeeds(work):
    failed = bash_block("echo SWEQ_SUBMIT; false")
    result, _ = work(ScriptedModel(failed, bash_block("echo SWEQ_SUBMIT")))
    assert (result.submitted, result.steps) == (True, 2)


@pytest.mark.parametrize(
    ("limit", "last", "settings"),
    [
        (Limit.STEPS, bash_block("true"), {"step_limit": 4}),
        (Limit.TOKENS, bash_block("true"), {"token_limit": 130}),
        (Limit.CONTEXT, OVERFLOW, {}),
        (Limit.CONTEXT, bash_block("true"), {"context_limit": 110}),
        (Limit.CONTEXT, say("I think", finish_reason="length", max_tokens=64), {}),
        (Limit.FORMAT, say("I am done."), {"format_error_limit": 2}),
    ],
    ids=["steps", "tokens", "refused", "counted", "cut", "format"],
)
def test_every_limit_salvages_the_diff(work, limit, last, settings):
    result, trajectory = work(ScriptedModel(bash_block(FIX), last), **settings)
    assert (result.limit, result.submitted) == (limit, False)
    assert trajectory.ending.limit is limit
    assert FIXED_LINE in result.patch


def test_tokens_sent_again_count_once(work):
    usages = [Usage(1000, 50), Usage(1200, 50, 1050), Usage(1300, 10, 0)]
    result, trajectory = work(ScriptedModel(*(say("```bash\ntrue\n```", usage=one) for one in usages)), step_limit=3)
    assert [step.new_tokens for step in trajectory.steps] == [1050, 200, 60]
    assert (trajectory.new_tokens, result.usage.total) == (1310, 3610)


def test_wall_clock_stops_the_command_and_salvages_the_diff(work):
    result, trajectory = work(ScriptedModel(bash_block(f"{FIX}; sleep 30")), wall_clock=1.0)
    assert result.limit is Limit.WALL_CLOCK
    assert trajectory.steps[0].actions[0].timed_out
    assert FIXED_LINE in result.patch


def test_request_timeout_is_the_servers_fault_while_the_clock_has_time(work):
    with pytest.raises(RequestTimeoutError):
        work(ScriptedModel(RequestTimeoutError("slow")))


def test_format_errors_count_in_a_row_only(work):
    bad, good = say("no block"), bash_block("true")
    result, _ = work(ScriptedModel(bad, bad, good, bad, bad, good, bad, bad, bad))
    assert (result.limit, result.steps) == (Limit.FORMAT, 9)


def test_malformed_calls_count_unless_one_call_of_the_answer_works(work):
    bad, mixed = call(("bash", '{"command": ')), call(("bash", "[]"), ("bash", {"command": "true"}))
    result, trajectory = work(ScriptedModel(bad, bad, mixed, bad), profile="tools")
    assert (result.limit, result.steps) == (Limit.FORMAT, 6)
    calls = [one for message in trajectory.messages for one in message.get("tool_calls", ())]
    assert all(isinstance(json.loads(one["function"]["arguments"]), dict) for one in calls)


def test_history_only_grows_at_its_end(work):
    replies = [bash_block("cat box.py"), say("hm"), bash_block("seq 5000"), bash_block("false"), bash_block("submit")]
    model = ScriptedModel(*replies)
    _, trajectory = work(model)
    for earlier, later in itertools.pairwise(request["messages"] for request in model.requests):
        assert later[: len(earlier)] == earlier
    assert trajectory.messages[: len(model.requests[-1]["messages"])] == model.requests[-1]["messages"]
    roles = [message["role"] for message in trajectory.messages]
    assert roles[0] == "system"
    assert roles[HEAD - 1 : HEAD + 2] == ["user", "assistant", "user"]


def test_seeds_depend_on_task_and_step_alone(work):
    model = ScriptedModel(bash_block("true"))
    work(model, step_limit=3)
    seeds = [request["seed"] for request in model.requests]
    assert seeds == [step_seed(7, number) for number in (1, 2, 3)]
    assert len(set(seeds)) == 3
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_answer_room_shrinks_with_the_context(work):
    first = say("```bash\ntrue\n```", usage=Usage(1500, 100, 0))
    model = ScriptedModel(first, bash_block("submit"), max_context=2000)
    work(model, sampling=SamplingConfig(max_tokens=300))
    rooms = [request["max_tokens"] for request in model.requests]
    assert rooms[0] == 300
    assert rooms[1] == 300
    model = ScriptedModel(first, bash_block("submit"), max_context=1700)
    work(model, sampling=SamplingConfig(max_tokens=300))
    assert 64 <= model.requests[1]["max_tokens"] < 100


def test_model_is_warned_once_before_the_last_steps(work):
    model = ScriptedModel(bash_block("true"))
    _, trajectory = work(model, step_limit=5)
    warned = [number for number, message in enumerate(trajectory.messages) if "answers left" in message["content"]]
    assert warned == [HEAD + 7]
    assert "(1 answers left" in trajectory.messages[HEAD + 7]["content"]


def test_a_cut_answer_is_told_apart_from_a_wrong_one(work):
    model = ScriptedModel(say("long", finish_reason="length"), say("wrong"), bash_block("submit"))
    _, trajectory = work(model)
    assert "cut off after 4096 tokens" in trajectory.messages[HEAD + 1]["content"]
    assert "no bash block" in trajectory.messages[HEAD + 3]["content"]


def test_nothing_of_the_solution_reaches_the_model(work):
    for profile in ("text", "tools"):
        model = ScriptedModel(say("x"))
        work(model, profile=profile)
        sent = json.dumps(model.requests)
        assert "SECRET" not in sent
        assert "costs $5 and ${braces}" in sent


def test_trajectory_is_whole_after_every_step(tmp_path, sandbox):
    path = tmp_path / "trajectory.json"
    lengths = []

    def check(step):
        trajectory = read_trajectory(path)
        assert trajectory.steps[-1] == step
        assert trajectory.ending is None
        lengths.append((len(trajectory.steps), step.messages == len(trajectory.messages)))

    agent = Agent(ScriptedModel(bash_block("true")), AgentConfig(profile="text", step_limit=3), SamplingConfig())
    agent.run(make_instance(), sandbox, seed=0, trajectory_path=path, on_step=check)
    assert lengths == [(1, True), (2, True), (3, True)]
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["trajectory.json"]


@pytest.mark.parametrize("failure", [EndpointError("server died"), SandboxError("daemon gone")])
def test_machine_failures_are_raised_and_recorded(tmp_path, failure):
    box = BrokenSandbox(tmp_path / "box", FILES)
    second = bash_block("break") if isinstance(failure, SandboxError) else failure
    agent = Agent(ScriptedModel(bash_block("true"), second), AgentConfig(profile="text"), SamplingConfig())
    with pytest.raises(type(failure)):
        agent.run(make_instance(), box, seed=0, trajectory_path=tmp_path / "t.json")
    trajectory = read_trajectory(tmp_path / "t.json")
    assert len(trajectory.steps) == 1
    assert type(failure).__name__ in trajectory.ending.error
