"""How a tool call, as the model wrote it, becomes an action, or a `Misuse` that tells the model what was wrong."""

import json
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from harness.agent.editor import EditorCall
from harness.agent.model import Message, ToolCall
from harness.agent.schemas import EDITOR
from harness.agent.tools import Action, Bash, Edit, Misuse, Submit

_UNUSABLE = re.compile("[\0\ud800-\udfff]")
_BUILDERS: dict[str, Callable[..., Action]] = {"bash": Bash, "edit": Edit, EDITOR: EditorCall, "submit": Submit}
_KINDS: dict[str, tuple[type, str]] = {
    "string": (str, "a string"),
    "integer": (int, "an integer"),
    "array": (list, "an array of integers"),
}


class Toolset:
    """The tools of one profile; `schema` is what the model is told of them."""

    def __init__(self, schema: Sequence[Message]) -> None:
        self.schema = schema
        self._parameters: dict[str, Any] = {
            tool["function"]["name"]: tool["function"]["parameters"] for tool in self.schema
        }

    def read(self, call: ToolCall) -> Action:
        """The action that `call` asks for."""
        if call.name not in self._parameters:
            return Misuse(f"there is no tool {call.name!r}; {_enumerate(list(self._parameters))}.", call.id)
        if call.name == "submit":
            return Submit(call.id)
        arguments = parse_object(call.arguments)
        if arguments is None:
            return Misuse(f"the arguments of {call.name} are no JSON object: {_json_problem(call.arguments)}", call.id)
        parameters = self._parameters[call.name]
        arguments = _convert(arguments, parameters)
        problem = _argument_problem(call.name, arguments, parameters)
        if problem:
            return Misuse(problem, call.id)
        return replace(_BUILDERS[call.name](**arguments), call_id=call.id)


def parse_object(arguments: str) -> dict[str, Any] | None:
    """The JSON object in `arguments`, an empty one where there is no text, None where it is anything else."""
    try:
        value = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _enumerate(names: list[str]) -> str:
    return f"there are {', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else f"there is only {names[0]}"


def _json_problem(arguments: str) -> str:
    try:
        return f"they are a {type(json.loads(arguments)).__name__}"
    except ValueError as error:
        return str(error)
    except RecursionError:
        return "they are nested too deeply"


def _convert(arguments: dict[str, Any], parameters: Message) -> dict[str, Any]:
    """Numbers and arrays that the model wrote as text, which its tool format may force on it, as what they are.

    A null for an optional argument is none at all.
    """
    converted = {}
    for name, value in arguments.items():
        kind = parameters["properties"].get(name, {}).get("type")
        if value is None and name not in parameters["required"]:
            continue
        if isinstance(value, str) and kind in ("integer", "array"):
            if not value.strip():
                continue
            with suppress(ValueError):
                value = json.loads(value)
        converted[name] = value
    return converted


def _argument_problem(tool: str, arguments: dict[str, Any], parameters: Message) -> str:
    """What is wrong with the arguments of a call, or nothing."""
    known, required = parameters["properties"], parameters["required"]
    for name in required:
        if name not in arguments:
            return f"{tool} needs the argument {name!r}; it takes {', '.join(known)}."
    for name in known:
        if name in arguments and (problem := _value_problem(arguments[name], known[name])):
            return f"the argument {name!r} of {tool} {problem}."
    unknown = sorted(set(arguments) - set(known))
    if unknown:
        return f"{tool} has no argument {unknown[0]!r}; it takes {', '.join(known)}."
    if not arguments[required[0]].strip():
        return f"the argument {required[0]!r} of {tool} is empty."
    return ""


def _value_problem(value: Any, schema: Message) -> str:
    kind, name = _KINDS[schema["type"]]
    if not isinstance(value, kind) or isinstance(value, bool):
        return f"must be {name}, not {type(value).__name__}"
    if isinstance(value, list) and not all(type(item) is int for item in value):
        return f"must be {name}"
    if isinstance(value, str) and _UNUSABLE.search(value):
        return "has a NUL character or half a surrogate pair in it"
    if "enum" in schema and value not in schema["enum"]:
        return f"must be one of {', '.join(schema['enum'])}, not {value!r}"
    return ""
