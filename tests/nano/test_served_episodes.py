"""What training reads is what the agent, the server and the sandbox say: whole episodes through all three."""

import json
import re
from functools import cache
from pathlib import Path

import pytest
from nano_doubles import ReplayEngine, make_ambiguous, make_instance, serving

from harness.agent.loop import Agent
from harness.agent.model import EndpointModel
from harness.agent.trajectory import read_trajectory
from harness.config import AgentConfig, SamplingConfig
from harness.sandbox.namespace import NamespaceFactory, probe
from harness.starter.generate import generate
from nano.data.conversation import COMMAND_TIMEOUT, STEP_LIMIT
from nano.data.episodes import make_conversation
from nano.data.expert import solve
from nano.data.render import to_messages, tokenize
from nano.data.tokenizer import TURN_END, load_tokenizer

pytestmark = [pytest.mark.namespace, pytest.mark.skipif(probe() is not None, reason=probe() or "")]

PYTEST = Path(pytest.__file__).parents[1]
"""Where the sandbox finds pytest, should it not lie beside the interpreter."""

WANTED = {
    "list": lambda turns: turns[0].arguments.get("command") == "git ls-files",
    "wrong file": lambda turns: any("is in another file" in turn.text for turn in turns),
    "reproduced": lambda turns: turns[2].text == "I try the call.",
    "wrong edits": lambda turns: sum("git checkout" in turn.arguments.get("command", "") for turn in turns) == 2,
    "inexact": lambda turns: any("does not occur" in turn.observation for turn in turns),
    "tests": lambda turns: any("pytest" in turn.arguments.get("command", "") for turn in turns),
    "traceback": lambda turns: any(re.search(r"\n\w+Error", turn.observation) for turn in turns),
    "plain": lambda turns: len(turns) == 5,
}


@cache
def known_conversation(seed):
    return make_conversation(seed)


def work(instance, episode, folder):
    """The agent on `instance`, with a model that gives the expert's ids: engine, result, messages."""
    engine = ReplayEngine([episode.token_ids[start:end].tolist() for start, end in answer_spans(episode)])
    config = AgentConfig(profile="tools", step_limit=STEP_LIMIT, command_timeout=COMMAND_TIMEOUT)
    sampling = SamplingConfig(temperature=0, max_tokens=512)
    with serving(engine) as url, NamespaceFactory(folders=[PYTEST]).create(instance) as sandbox:
        model = EndpointModel(url, None, "sweq-nano", sampling, 60, 8192)
        path = folder / "trajectory.json"
        result = Agent(model, config, sampling).run(instance, sandbox, seed=1, trajectory_path=path)
        return engine, result, read_trajectory(path).messages


def answer_spans(episode):
    """Where the model's turns lie in the ids, found independently of the mask."""
    tokenizer = load_tokenizer()
    text = [tokenizer.decode([each], special=True) for each in episode.token_ids.tolist()]
    starts = [at + 3 for at in range(len(text)) if text[at : at + 3] == ["<|im_start|>", "assistant", "\n"]]
    return [(start, text.index(TURN_END, start) + 1) for start in starts]


def comparable(message):
    """A message without ids and with its arguments parsed; the seconds that a test run took are not the same twice."""
    content = re.sub(r"passed in \d+\.\d\ds", "passed", message["content"])
    calls = [
        (call["function"]["name"], read(call["function"]["arguments"])) for call in message.get("tool_calls") or ()
    ]
    return message["role"], content, calls


def read(arguments):
    return json.loads(arguments) if isinstance(arguments, str) else arguments


def check(made, conversation, folder):
    """The agent's messages are the conversation's, and every prompt is training's, up to a test run's own seconds."""
    episode = tokenize(conversation)
    engine, result, messages = work(make_instance(made, folder), episode, folder)
    assert result.submitted
    assert [comparable(each) for each in messages] == [comparable(each) for each in to_messages(conversation)]
    ids, commands = episode.token_ids.tolist(), [turn.arguments.get("command", "") for turn in conversation.turns]
    timed = next((at for at, command in enumerate(commands, start=1) if "pytest" in command), len(commands))
    assert engine.prompts[:timed] == [ids[:start] for start, _ in answer_spans(episode)][:timed]
    return result


@pytest.mark.parametrize("name", WANTED)
def test_agent_server_and_sandbox_say_what_training_reads(name, tmp_path):
    seed = next(seed for seed in range(100_000, 102_000) if WANTED[name](known_conversation(seed).turns))
    made = generate(seed, "train")
    result = check(made, known_conversation(seed), tmp_path)
    assert changed_lines(result.patch) == changed_lines(made.patch)


def test_an_edit_that_fits_twice_is_told_and_extended(tmp_path):
    made = make_ambiguous()
    conversations = (solve(made, seed) for seed in range(100))
    wanted = next(each for each in conversations if any("occurs 2 times" in turn.observation for turn in each.turns))
    result = check(made, wanted, tmp_path)
    assert changed_lines(result.patch) == ["-    return value + 1", "+    return value + 2"]


def changed_lines(patch):
    return [line for line in patch.splitlines() if line.startswith(("-", "+")) and line[:3] not in ("---", "+++")]
