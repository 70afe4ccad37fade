"""The items of `/v1/responses` as chat messages, and its tools in the form of chat completions."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from engine.errors import RequestError
from engine.serve.responses.store import Item
from engine.serve.tool_choice import FUNCTION_NAME
from engine.text.messages import read_arguments, read_text

ROLES = ("user", "assistant", "system", "developer")
KINDS = ("message", "function_call", "function_call_output", "reasoning", "item_reference")


def read_items(value: str | Sequence[Item], find: Callable[[str, str], Item]) -> list[Item]:
    """The items of `input`, checked, references put right by `find(id, field)`; RequestError that names the field."""
    if isinstance(value, str):
        return [{"type": "message", "role": "user", "content": value}]
    items = []
    for i, item in enumerate(value):
        where = f"input[{i}]"
        if _kind(item) == "item_reference":
            item = find(_string(item, "id", where), f"{where}.id")
        _check(item, where)
        items.append(item)
    return items


def to_messages(instructions: str | None, items: Sequence[Item]) -> list[dict[str, Any]]:
    """Chat messages of checked items.

    The text and calls of one answer are items of their own here and one message there: a call belongs to the answer
    before it, and so does text right behind a call, because an answer never puts text right behind text. System
    messages at the beginning become one, because templates take no more.
    """
    system = [instructions] if instructions else []
    messages: list[dict[str, Any]] = []
    follows_call = False
    for item in items:
        kind, role = _kind(item), item.get("role")
        if kind == "reasoning":
            continue
        if kind == "function_call":
            _open_answer(messages).setdefault("tool_calls", []).append(_call(item))
        elif kind == "function_call_output":
            content = read_text(item["output"], "tool", "output")
            messages.append({"role": "tool", "tool_call_id": item["call_id"], "content": content})
        elif role == "assistant" and follows_call:
            messages[-1]["content"] += _content(item, "content")
        elif role in ("system", "developer") and not messages:
            system.append(_content(item, "content"))
        else:
            messages.append({"role": role, "content": _content(item, "content")})
        follows_call = kind == "function_call"
    head = [{"role": "system", "content": "\n\n".join(system)}] if system else []
    return head + messages


def read_tools(tools: Sequence[Mapping[str, Any]] | None) -> tuple[list[dict[str, Any]], list[str]]:
    """Functions in the nested form of chat completions, and in words the tools that are left out.

    Left out is what only OpenAI's servers run (`web_search`, ...) and what has no name, because clients send them
    whatever the server. RequestError names the field of a function that is wrong.
    """
    functions, ignored = [], []
    for i, tool in enumerate(tools or ()):
        kind = tool.get("type", "function")
        if not isinstance(kind, str):
            raise RequestError(f"tools[{i}].type must be a string", param=f"tools[{i}].type")
        if _is_function(tool):
            functions.append({"type": "function", "function": _function(_flat(tool), f"tools[{i}]")})
        else:
            ignored.append(f"type {kind!r}" if kind != "function" else "a function without a name")
    return functions, ignored


def as_asked(error: RequestError, tools: Sequence[Mapping[str, Any]] | None) -> RequestError:
    """An error about chat messages or tools, in the words of this API's fields."""
    places = [i for i, tool in enumerate(tools or ()) if _is_function(tool)]

    def place(found: re.Match[str]) -> str:
        return f"tools[{places[int(found[1])]}]"

    message, param = (re.sub(r"\btools\[(\d+)\]\.function", place, text) for text in (str(error), error.param or ""))
    return RequestError(message, param="input" if param == "messages" else param or None, code=error.code)


def read_tool_choice(choice: Any) -> Any:
    """`tool_choice` in the form of chat completions; RequestError for an object that names no function."""
    if not isinstance(choice, Mapping):
        return choice
    if choice.get("type") != "function" or not isinstance(_flat(choice).get("name"), str):
        message = "tool_choice must be 'auto', 'none', 'required' or {\"type\": \"function\", \"name\": ...}"
        raise RequestError(message, param="tool_choice")
    return {"type": "function", "function": {"name": _flat(choice)["name"]}}


def _flat(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """The function's own fields, which chat completions have one level down."""
    inner = tool.get("function")
    return inner if isinstance(inner, Mapping) else tool


def _is_function(tool: Mapping[str, Any]) -> bool:
    return tool.get("type", "function") == "function" and _flat(tool).get("name") is not None


def _kind(item: Item) -> str:
    """The item's type, which clients leave out where the other keys tell it."""
    kind = item.get("type")
    if kind is not None:
        return kind if isinstance(kind, str) else ""
    return "message" if "role" in item or "content" in item else "item_reference" if "id" in item else ""


def _check(item: Item, where: str) -> None:
    kind = _kind(item)
    if kind == "message":
        if item.get("role") not in ROLES:
            message = f"{where}.role must be one of {', '.join(ROLES)}; got {item.get('role')!r}"
            raise RequestError(message, param=f"{where}.role")
        _content(item, f"{where}.content")
    elif kind == "function_call":
        _string(item, "call_id", where)
        _string(item, "name", where)
        read_arguments(item.get("arguments"), f"{where}.arguments")
    elif kind == "function_call_output":
        _string(item, "call_id", where)
        read_text(item.get("output"), "tool", f"{where}.output")
    elif kind != "reasoning":
        message = f"{where}.type must be one of {', '.join(KINDS)}; got {item.get('type')!r}"
        raise RequestError(message, param=f"{where}.type")


def _content(item: Item, where: str) -> str:
    content = item.get("content")
    if isinstance(content, list):
        content = [_part(part) for part in content]
    return read_text(content, item["role"], where)


def _part(part: Any) -> Any:
    """A part with the text of a refusal as text."""
    if isinstance(part, Mapping) and part.get("type") == "refusal":
        return {"type": "text", "text": part.get("refusal")}
    return part


def _open_answer(messages: list[dict[str, Any]]) -> dict[str, Any]:
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": ""})
    return messages[-1]


def _call(item: Item) -> dict[str, Any]:
    function = {"name": item["name"], "arguments": item.get("arguments")}
    return {"id": item["call_id"], "type": "function", "function": function}


def _function(function: Mapping[str, Any], where: str) -> dict[str, Any]:
    name = function["name"]
    if not isinstance(name, str) or not FUNCTION_NAME.fullmatch(name):
        message = f"{where}.name must be a name without white space, quotes and angle brackets"
        raise RequestError(message, param=f"{where}.name")
    if not isinstance(function.get("parameters"), Mapping | None):
        raise RequestError(f"{where}.parameters must be a JSON schema object", param=f"{where}.parameters")
    if not isinstance(function.get("description"), str | None):
        raise RequestError(f"{where}.description must be a string", param=f"{where}.description")
    keys = ("name", "description", "parameters")
    return {key: function[key] for key in keys if function.get(key) is not None}


def _string(item: Item, key: str, where: str) -> str:
    value = item.get(key)
    if not isinstance(value, str) or not value:
        raise RequestError(f"{where}.{key} must be a non-empty string", param=f"{where}.{key}")
    return value
