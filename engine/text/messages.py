"""Chat messages as clients send them, brought to the one form that chat templates expect."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from engine.errors import RequestError

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
"""Role on the wire -> role in the template: no template knows `developer`."""

MAX_DEPTH = 128
"""Arguments nested further would end the recursion of templates and of JSON's own writer."""

TEXT_PARTS = ("text", "input_text", "output_text")


def normalize(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages with a known role, `content` one string and tool-call `arguments` an object; other keys unchanged.

    Templates crash on the wire forms: content as a list of parts or null, arguments as a JSON string. Raises
    RequestError naming the field of the first message that has no such form.
    """
    return [_normalize_one(message, f"messages[{i}]") for i, message in enumerate(messages)]


def _normalize_one(message: Mapping[str, Any], where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise RequestError(f"{where} must be an object", param=where)
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise RequestError(f"{where}.role must be one of {', '.join(ROLES)}; got {role!r}", param=f"{where}.role")
    result = dict(message, role=ROLES[role], content=read_text(message.get("content"), role, f"{where}.content"))
    calls = result.pop("tool_calls", None)
    if calls:
        result["tool_calls"] = _calls(calls, f"{where}.tool_calls")
    return result


def read_text(content: Any, role: str, where: str) -> str:
    """Content on the wire as one string; parts are joined by newlines. RequestError that names `where`."""
    if isinstance(content, str):
        return content
    if content is None and role == "assistant":
        return ""
    if isinstance(content, list):
        return "\n".join(_part(part, f"{where}[{i}]") for i, part in enumerate(content))
    raise RequestError(f"{where} must be a string or a list of text parts", param=where)


def _part(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind not in TEXT_PARTS:
        raise RequestError(f"{where}: only text parts are supported; got type {kind!r}", param=where)
    if not isinstance(part.get("text"), str):
        raise RequestError(f"{where}.text must be a string", param=f"{where}.text")
    text: str = part["text"]
    return text


def _calls(calls: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(calls, list):
        raise RequestError(f"{where} must be a list", param=where)
    return [_call(call, f"{where}[{i}]") for i, call in enumerate(calls)]


def _call(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise RequestError(f"{where}.function must be an object with a name", param=f"{where}.function")
    arguments = read_arguments(function.get("arguments"), f"{where}.function.arguments")
    return dict(call, function=dict(function, arguments=arguments))


def read_arguments(value: Any, where: str) -> dict[str, Any]:
    """A call's arguments, a JSON string on the wire, as an object. RequestError that names `where`."""
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else {}
        except (ValueError, RecursionError) as error:
            raise RequestError(f"{where} is not valid JSON: {error}", param=where) from error
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise RequestError(f"{where} must be a JSON object", param=where)
    if _is_deeper(value, MAX_DEPTH):
        raise RequestError(f"{where} is nested more than {MAX_DEPTH} deep", param=where)
    return value


def _is_deeper(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit + 1):
        containers = [each for each in level if isinstance(each, dict | list)]
        level = [child for each in containers for child in (each.values() if isinstance(each, dict) else each)]
    return bool(level)
