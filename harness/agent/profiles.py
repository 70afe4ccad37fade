"""How a model's answer becomes actions, and their observations become messages: one class per profile."""

import json
import re
from collections.abc import Sequence
from typing import Protocol

from harness.agent import schemas
from harness.agent.calls import Toolset, parse_object
from harness.agent.model import Message, Reply, ToolCall
from harness.agent.prompts import Prompts, load_prompts
from harness.agent.tools import Action, Bash, Misuse, Observation, Submit

VERSION = 2
"""Of what profiles and loop do with a model's answers, beside the words of `prompts.yaml`; runs of two versions do not
compare. 1 counted every token of every call against `token_limit`, 2 counts a token once.
"""

_BLOCK = re.compile(r"^```bash[ \t]*\n(.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)


_SCHEMAS = {"tools": schemas.TOOLS, "mini": schemas.MINI, "editor": schemas.WITH_EDITOR}


class FormatError(Exception):
    """An answer without any action in it; the message says what was wrong."""


class Profile(Protocol):
    """A way of talking with the model. With `reviews` the first submission shows the changes, and the next one ends."""

    prompts: Prompts
    tools: Sequence[Message] | None
    reviews: bool

    def history(self, reply: Reply) -> Message:
        """The assistant message that stays in the history."""
        ...

    def parse(self, reply: Reply) -> list[Action]:
        """The actions of an answer, in order; raises `FormatError` where there is none."""
        ...

    def observe(self, actions: Sequence[Action], observations: Sequence[Observation]) -> list[Message]:
        """The messages that tell the model what its actions did."""
        ...


class ToolsProfile:
    """Tool calls, several per answer carried out in order. `name` is one of `_SCHEMAS`: tools, mini or editor."""

    def __init__(self, name: str = "tools") -> None:
        self.prompts = load_prompts(name)
        self.reviews = name == "editor"
        self.tools: Sequence[Message] | None = _SCHEMAS[name]
        self._toolset = Toolset(_SCHEMAS[name])

    def history(self, reply: Reply) -> Message:
        """The server's own message; arguments that are no JSON object are wrapped into one.

        Chat templates parse the arguments of earlier calls, and some servers refuse every later request of a
        conversation that holds a call they cannot parse.
        """
        if all(call.arguments and parse_object(call.arguments) is not None for call in reply.tool_calls):
            return reply.raw_message
        return {**reply.raw_message, "tool_calls": [_well_formed(call) for call in reply.tool_calls]}

    def parse(self, reply: Reply) -> list[Action]:
        """One action per call; a call that makes no sense becomes a `Misuse`, answered in its own tool message."""
        if not reply.tool_calls:
            raise FormatError("it has no tool call.")
        actions = [self._toolset.read(call) for call in reply.tool_calls]
        if reply.finish_reason == "length":
            # Some servers close the arguments of a call that was cut, and half a command must not run.
            last = actions[-1]
            problem = last.problem if isinstance(last, Misuse) else "the last call may not be whole and was not run."
            cut = f"your answer was cut off at {reply.max_tokens} tokens"
            actions[-1] = Misuse(f"{cut}; {problem}", last.call_id)
        return actions

    def observe(self, actions: Sequence[Action], observations: Sequence[Observation]) -> list[Message]:
        """One tool message per call."""
        return [
            {"role": "tool", "tool_call_id": action.call_id, "content": observation.text}
            for action, observation in zip(actions, observations, strict=True)
        ]


class TextProfile:
    """Exactly one fenced bash block per answer, for models without a template for tools."""

    tools: Sequence[Message] | None = None
    reviews = False

    def __init__(self) -> None:
        self.prompts = load_prompts("text")

    def history(self, reply: Reply) -> Message:
        """Role and text alone."""
        return {"role": "assistant", "content": reply.text}

    def parse(self, reply: Reply) -> list[Action]:
        """The one block's command, or `Submit` where the block is just that word."""
        blocks = _BLOCK.findall(reply.text.replace("\r\n", "\n") + "\n")
        if len(blocks) != 1:
            raise FormatError(f"it has {len(blocks) or 'no'} bash block{'s' if len(blocks) > 1 else ''}.")
        command = blocks[0].strip()
        if not command:
            raise FormatError("the bash block is empty.")
        if "\0" in command:
            raise FormatError("the command has a NUL character in it.")
        return [Submit() if command == "submit" else Bash(command)]

    def observe(self, actions: Sequence[Action], observations: Sequence[Observation]) -> list[Message]:
        """One user message."""
        return [{"role": "user", "content": observation.text} for observation in observations]


def choose_profile(name: str) -> Profile:
    """The profile that `AgentConfig.profile` names."""
    return TextProfile() if name == "text" else ToolsProfile(name)


def told_tools(profile: str) -> list[Message] | None:
    """The tools that a profile's model is told of, None where there are none or an external agent brings its own."""
    tools = None if profile == "external" else choose_profile(profile).tools
    return None if tools is None else list(tools)


def prompts_hash(profile: str) -> str:
    """sha256 (hex) of all that a profile says to the model, tool descriptions included: only equal runs compare."""
    if profile == "external":
        return load_prompts(profile).digest()
    chosen = choose_profile(profile)
    return chosen.prompts.digest(list(chosen.tools or ()))


def _well_formed(call: ToolCall) -> Message:
    known = parse_object(call.arguments) is not None
    arguments = (call.arguments or "{}") if known else json.dumps({"malformed": call.arguments})
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}
