"""sweq-nano at work on starter-500: its server, the agent, and what was said, turn by turn."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from forced_server import Server, running_server

from engine.config import EngineConfig
from engine.serve.opening import open_service
from harness.agent.loop import Agent
from harness.agent.model import EndpointModel, Usage
from harness.agent.schemas import TOOLS
from harness.agent.trajectory import read_trajectory
from harness.config import AgentConfig, SamplingConfig
from harness.instances import Instance, load_instances
from harness.sandbox.namespace import NamespaceFactory, probe
from harness.starter.archive import STARTER_500
from nano.data.conversation import COMMAND_TIMEOUT, LONGEST_CONTEXT, STEP_LIMIT, Conversation
from nano.data.render import to_messages
from nano.data.tokenizer import MODEL

Message = dict[str, Any]
MAX_TOKENS = 256
PYTEST = Path(pytest.__file__).parents[1]
"""Where sandboxes find pytest, should it not lie beside the interpreter."""
OBSERVATIONS = Path(__file__).with_name("nano_observations.json")
"""What the tools answered to the model on the first near instances, for machines that make no sandboxes."""


@dataclass(frozen=True)
class Turn:
    """One answer: the `history` it was asked with, its `message`, and the server's count of tokens."""

    history: list[Message]
    message: Message
    usage: Usage


def near_instances(count: int) -> list[Instance]:
    """The first of the part of starter-500 that is most like the model's training."""
    return [instance for instance in load_instances(STARTER_500) if instance.difficulty == "near"][:count]


@contextmanager
def serving(**limits: Any) -> Iterator[Server]:
    """A server of sweq-nano at bf16 over the real engine."""
    config = EngineConfig(device="cpu", max_running=4, max_context=LONGEST_CONTEXT, **limits)
    with running_server(lambda: open_service(str(MODEL), "bf16", config)) as server:
        server.wait_until(lambda: server.session.state == "ready", 120)
        yield server


def ask(server: Server, history: list[Message]) -> tuple[Message, Usage]:
    """The greedy answer and its usage, as the agent gets them."""
    sampling = SamplingConfig(temperature=0, max_tokens=MAX_TOKENS)
    model = EndpointModel(f"{server.url}/v1", None, "sweq-nano", sampling, 120, LONGEST_CONTEXT)
    reply = model.complete(history, TOOLS, seed=1)
    return reply.raw_message, reply.usage


def work(server: Server, instance: Instance, folder: Path) -> list[Turn]:
    """The agent's work on `instance` in a sandbox; where none can be made, over the observations of such a run."""
    if probe() is None:
        return _act(server, instance, folder / f"{instance.instance_id}.json")
    return recite(server, instance)


def _act(server: Server, instance: Instance, path: Path) -> list[Turn]:
    config = AgentConfig(profile="tools", step_limit=STEP_LIMIT, command_timeout=COMMAND_TIMEOUT)
    sampling = SamplingConfig(temperature=0, max_tokens=MAX_TOKENS)
    model = EndpointModel(f"{server.url}/v1", None, "sweq-nano", sampling, 120, LONGEST_CONTEXT)
    with NamespaceFactory(folders=[PYTEST]).create(instance) as sandbox:
        Agent(model, config, sampling).run(instance, sandbox, seed=1, trajectory_path=path)
    trajectory = read_trajectory(path)
    messages = trajectory.messages
    places = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
    pairs = zip(places, trajectory.steps, strict=True)
    return [Turn(messages[:at], messages[at], step.usage) for at, step in pairs]


def recite(server: Server, instance: Instance) -> list[Turn]:
    """`work` on one of the first two near instances, over recorded observations."""
    history = to_messages(Conversation(instance.problem_statement, ()))
    turns = []
    for observation in json.loads(OBSERVATIONS.read_text())[instance.instance_id]:
        message, usage = ask(server, history)
        turns.append(Turn(history, message, usage))
        calls = message.get("tool_calls", [])
        results = [{"role": "tool", "tool_call_id": call["id"], "content": observation} for call in calls]
        history = [*history, message, *results]
    return turns


def calls_of(message: Message) -> list[tuple[str, Any]]:
    """Names and parsed arguments; ValueError where they are no JSON."""
    functions = [call["function"] for call in message.get("tool_calls") or ()]
    return [(function["name"], json.loads(function["arguments"])) for function in functions]


Client = Callable[[Server, list[Message]], tuple[list[tuple[str, Any]], int]]
"""Asks with a history over one API through its own library: the calls of the answer, and the tokens of the prompt."""


def by_chat(server: Server, history: list[Message]) -> tuple[list[tuple[str, Any]], int]:
    answer: Any = server.client().chat.completions.create(**_chat(history))
    return calls_of(answer.choices[0].message.model_dump()), answer.usage.prompt_tokens


def by_chat_stream(server: Server, history: list[Message]) -> tuple[list[tuple[str, Any]], int]:
    with server.client().chat.completions.stream(**_chat(history), stream_options={"include_usage": True}) as stream:
        answer: Any = stream.get_final_completion()
    return calls_of(answer.choices[0].message.model_dump()), answer.usage.prompt_tokens


def by_responses(server: Server, history: list[Message]) -> tuple[list[tuple[str, Any]], int]:
    answer: Any = server.client().responses.create(**_response(history))
    return _response_calls(answer)


def by_responses_stream(server: Server, history: list[Message]) -> tuple[list[tuple[str, Any]], int]:
    with server.client().responses.stream(**_response(history)) as stream:
        answer: Any = stream.get_final_response()
    return _response_calls(answer)


def _chat(history: list[Message]) -> dict[str, Any]:
    return {"model": "m", "messages": history, "tools": TOOLS, "temperature": 0, "max_tokens": MAX_TOKENS}


def _response(history: list[Message]) -> dict[str, Any]:
    tools = [{"type": "function", "strict": False, **tool["function"]} for tool in TOOLS]
    items = [item for message in history for item in _items(message)]
    return {"model": "m", "input": items, "tools": tools, "temperature": 0, "max_output_tokens": MAX_TOKENS}


def _items(message: Message) -> list[Message]:
    if message["role"] == "tool":
        return [{"type": "function_call_output", "call_id": message["tool_call_id"], "output": message["content"]}]
    calls = [
        {"type": "function_call", "call_id": call["id"], **call["function"]} for call in message.get("tool_calls") or ()
    ]
    return [{"role": message["role"], "content": message["content"]}, *calls]


def _response_calls(answer: Any) -> tuple[list[tuple[str, Any]], int]:
    calls = [item for item in answer.output if item.type == "function_call"]
    return [(call.name, json.loads(call.arguments)) for call in calls], answer.usage.input_tokens


def by_messages(server: Server, history: list[Message]) -> tuple[list[tuple[str, Any]], int]:
    return _blocks(_anthropic(server).messages.create(**_message(history)))


def by_messages_stream(server: Server, history: list[Message]) -> tuple[list[tuple[str, Any]], int]:
    with _anthropic(server).messages.stream(**_message(history)) as stream:
        return _blocks(stream.get_final_message())


def _anthropic(server: Server) -> Any:
    anthropic = pytest.importorskip("anthropic")
    return anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0, timeout=120)


def _message(history: list[Message]) -> dict[str, Any]:
    tools = [
        {"name": tool["name"], "description": tool["description"], "input_schema": tool["parameters"]}
        for tool in (each["function"] for each in TOOLS)
    ]
    system, *others = history
    messages = [_content(message) for message in others]
    return {
        "model": "m", "system": system["content"], "messages": messages, "tools": tools,
        "max_tokens": MAX_TOKENS, "extra_body": {"temperature": 0},
    }  # fmt: skip


def _content(message: Message) -> Message:
    if message["role"] == "tool":
        result = {"type": "tool_result", "tool_use_id": message["tool_call_id"], "content": message["content"]}
        return {"role": "user", "content": [result]}
    uses = [
        {"type": "tool_use", "id": call["id"], "name": name, "input": arguments}
        for call, (name, arguments) in zip(message.get("tool_calls") or (), calls_of(message), strict=True)
    ]
    return {"role": message["role"], "content": [{"type": "text", "text": message["content"]}, *uses]}


def _blocks(answer: Any) -> tuple[list[tuple[str, Any]], int]:
    calls = [(block.name, block.input) for block in answer.content if block.type == "tool_use"]
    return calls, answer.usage.input_tokens + answer.usage.cache_read_input_tokens


CLIENTS: tuple[Client, ...] = (
    by_chat, by_chat_stream, by_responses, by_responses_stream, by_messages, by_messages_stream,
)  # fmt: skip
