"""Anthropic's system text, messages, tools and tool choice, in the chat form that templates take."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from engine.errors import RequestError
from engine.serve.tool_choice import FUNCTION_NAME

SKIPPED = ("thinking", "redacted_thinking")
"""Blocks that the history of a conversation does without."""

BILLING_HEADER = re.compile(r"\Ax-anthropic-billing-header:[^\n]*\n?")
"""Claude Code's account of itself in front of the system text. It says nothing to the model, and the hash in it differs
from request to request, so that no prefix of the prompt would ever be in the cache."""

IN_CHAT = {
    r"(\btools\[\d+\])\.function\.parameters": r"\1.input_schema",
    r"(\btools\[\d+\])\.function": r"\1",
    r"\bresponse_format\b": "output_config.format",
}
"""How errors about chat completions name what these fields hold."""

CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def chat_messages(system: Any, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The conversation as chat messages.

    A tool result becomes a message of its own, "Error: " before its text when `is_error` says so; messages of one role
    in a row become one, as the API documents it. Raises RequestError naming the block that has no such form.
    """
    turns = [] if system is None else list(_system(system, "system"))
    for i, message in enumerate(messages):
        turns += _turns(message, f"messages[{i}]")
    if not turns:
        raise _wrong("messages", "must say something")
    return _merged(turns)


def chat_tools(tools: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]]:
    """The tools in OpenAI's form; RequestError naming one that the client does not run or describe itself."""
    return [_tool(tool, f"tools[{i}]") for i, tool in enumerate(tools or ())]


def chat_tool_choice(
    choice: Mapping[str, Any] | None, tools: Sequence[Mapping[str, Any]]
) -> tuple[str | dict[str, Any] | None, bool | None]:
    """OpenAI's `tool_choice` and `parallel_tool_calls`; RequestError when what is chosen is not there."""
    if choice is None:
        return None, None
    single = choice.get("disable_parallel_tool_use")
    if not isinstance(single, bool | None):
        raise _wrong("tool_choice.disable_parallel_tool_use", "must be true or false")
    parallel = False if single else None
    kind, name = choice.get("type"), choice.get("name")
    if kind == "tool":
        if name not in [tool["function"]["name"] for tool in tools]:
            raise _wrong("tool_choice.name", f"{name!r} is not among the request's tools")
        return {"type": "function", "function": {"name": name}}, parallel
    if not isinstance(kind, str) or kind not in CHOICES:
        raise _wrong("tool_choice.type", f"must be one of {', '.join([*CHOICES, 'tool'])}; got {kind!r}")
    if kind == "any" and not tools:
        raise _wrong("tool_choice", "type 'any' needs tools")
    return CHOICES[kind], parallel


def as_asked(error: RequestError) -> RequestError:
    """An error that names fields of chat completions, in the words of this API."""
    message, param = str(error), error.param or ""
    for chat, asked in IN_CHAT.items():
        message, param = re.sub(chat, asked, message), re.sub(chat, asked, param)
    return RequestError(message, param=param or None, code=error.code)


def _turns(message: Mapping[str, Any], where: str) -> Iterator[dict[str, Any]]:
    role, content = message.get("role"), message.get("content")
    if role == "user":
        return _user(content, f"{where}.content")
    if role == "assistant":
        return _assistant(content, f"{where}.content")
    if role == "system":
        return _system(content, f"{where}.content")
    raise _wrong(f"{where}.role", f"must be user, assistant or system; got {role!r}")


def _system(content: Any, where: str) -> Iterator[dict[str, Any]]:
    for block, place in _blocks(content, where):
        yield {"role": "system", "content": BILLING_HEADER.sub("", _text(block, place))}


def _user(content: Any, where: str) -> Iterator[dict[str, Any]]:
    blocks = _blocks(content, where)
    for block, place in blocks:
        if block["type"] == "tool_result":
            yield _tool_result(block, place)
        else:
            yield {"role": "user", "content": _text(block, place)}
    if not blocks:
        yield {"role": "user", "content": ""}


def _assistant(content: Any, where: str) -> Iterator[dict[str, Any]]:
    texts, calls = [], []
    for block, place in _blocks(content, where):
        if block["type"] == "tool_use":
            calls.append(_call(block, place))
        elif block["type"] not in SKIPPED:
            texts.append(_text(block, place))
    # An answer with a call inside comes back in several blocks, whose texts were one.
    message = {"role": "assistant", "content": "".join(texts)}
    yield message | ({"tool_calls": calls} if calls else {})


def _blocks(content: Any, where: str) -> list[tuple[Mapping[str, Any], str]]:
    """The blocks of a content, each with the place that errors name."""
    if isinstance(content, str):
        return [({"type": "text", "text": content}, where)]
    if not isinstance(content, list):
        raise _wrong(where, "must be a string or a list of blocks")
    for i, block in enumerate(content):
        if not isinstance(block, Mapping) or not isinstance(block.get("type"), str):
            raise _wrong(f"{where}[{i}]", "must be a block with a type")
    return [(block, f"{where}[{i}]") for i, block in enumerate(content)]


def _text(block: Mapping[str, Any], where: str) -> str:
    if block["type"] != "text":
        raise _wrong(where, f"a block of type {block['type']!r} cannot be used here; this model reads text alone")
    text = block.get("text")
    if not isinstance(text, str):
        raise _wrong(f"{where}.text", "must be a string")
    return text


def _tool_result(block: Mapping[str, Any], where: str) -> dict[str, Any]:
    name, content, failed = block.get("tool_use_id"), block.get("content"), block.get("is_error")
    if not isinstance(name, str):
        raise _wrong(f"{where}.tool_use_id", "must be a string")
    if not isinstance(failed, bool | None):
        raise _wrong(f"{where}.is_error", "must be true or false")
    parts = [] if content is None else [_text(*part) for part in _blocks(content, f"{where}.content")]
    text = "\n".join(parts)
    return {"role": "tool", "tool_call_id": name, "content": f"Error: {text}" if failed else text}


def _call(block: Mapping[str, Any], where: str) -> dict[str, Any]:
    if not isinstance(block.get("id"), str):
        raise _wrong(f"{where}.id", "must be a string")
    if not isinstance(block.get("name"), str):
        raise _wrong(f"{where}.name", "must be a string")
    if not isinstance(block.get("input"), dict):
        raise _wrong(f"{where}.input", "must be an object")
    return {"id": block["id"], "type": "function", "function": {"name": block["name"], "arguments": block["input"]}}


def _tool(tool: Mapping[str, Any], where: str) -> dict[str, Any]:
    kind, name, schema = tool.get("type"), tool.get("name"), tool.get("input_schema")
    if kind not in (None, "custom"):
        raise _wrong(where, f"{kind!r} is not a tool of the client's own; only tools with an input_schema are served")
    if not isinstance(name, str) or not FUNCTION_NAME.fullmatch(name):
        raise _wrong(f"{where}.name", "must be a name without white space, quotes and angle brackets")
    if not isinstance(schema, Mapping):
        raise _wrong(f"{where}.input_schema", "must be a JSON schema object")
    description = tool.get("description")
    if not isinstance(description, str | None):
        raise _wrong(f"{where}.description", "must be a string")
    function = {"name": name} | ({} if description is None else {"description": description})
    return {"type": "function", "function": {**function, "parameters": schema}}


def _merged(turns: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Turns of one role in a row as one, the texts on lines of their own (system texts as paragraphs); tool results
    stay apart."""
    merged: list[dict[str, Any]] = []
    for turn in turns:
        if merged and turn["role"] == merged[-1]["role"] != "tool":
            merged[-1] = _joined(merged[-1], turn)
        else:
            merged.append(turn)
    return merged


def _joined(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    gap = "\n\n" if one["role"] == "system" else "\n"
    text = gap.join(turn["content"] for turn in (one, other) if turn["content"])
    calls = [*one.get("tool_calls", ()), *other.get("tool_calls", ())]
    return {"role": one["role"], "content": text} | ({"tool_calls": calls} if calls else {})


def _wrong(param: str, problem: str) -> RequestError:
    return RequestError(f"{param}: {problem}", param=param)
