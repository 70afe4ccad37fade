"""Types of request fields whose inside the routes read themselves, with bounds and the schema our OpenAPI gives them.

The schemas say what is understood; what a client sends beside it is accepted.
"""

from typing import Annotated, Any

from pydantic import Field, WithJsonSchema

MAX_MESSAGES = 1 << 14
MAX_TOOLS = 1 << 10

JsonObject = dict[str, Any]


def _object(required: str = "", **properties: Any) -> JsonObject:
    return {"type": "object", "properties": properties, "required": required.split()}


def _list(item: JsonObject, most: int | None = None, least: int = 0) -> JsonObject:
    return {"type": "array", "items": item, "minItems": least} | ({} if most is None else {"maxItems": most})


def _one_of(*values: str) -> JsonObject:
    return {"type": "string", "enum": list(values)}


STRING: JsonObject = {"type": "string"}
NULL: JsonObject = {"type": "null"}
NAME: JsonObject = {"type": "string", "pattern": r"^[^\s\"'<>]+$"}
ANY_OBJECT: JsonObject = {"type": "object"}

PARTS = {"anyOf": [STRING, _list(_object("type text", type=_one_of("text", "input_text", "output_text"), text=STRING))]}
CALL = _object(
    "function",
    id=STRING,
    type=_one_of("function"),
    function=_object("name", name=STRING, arguments={"anyOf": [{"type": "string", "enum": ["", "{}"]}, ANY_OBJECT]}),
)
MESSAGE = {
    "anyOf": [
        _object(
            "role content", role=_one_of("system", "developer", "user", "tool"), content=PARTS, tool_call_id=STRING
        ),
        _object("role", role=_one_of("assistant"), content={"anyOf": [*PARTS["anyOf"], NULL]}, tool_calls=_list(CALL)),
    ]
}
FUNCTION = _object("name", name=NAME, description=STRING, parameters=ANY_OBJECT)
TOOL = _object("type function", type=_one_of("function"), function=FUNCTION)

TEXT_BLOCK = _object("type text", type=_one_of("text"), text=STRING)
BLOCK = {
    "anyOf": [
        TEXT_BLOCK,
        _object("type id name input", type=_one_of("tool_use"), id=STRING, name=STRING, input=ANY_OBJECT),
        _object(
            "type tool_use_id",
            type=_one_of("tool_result"),
            tool_use_id=STRING,
            content={"anyOf": [STRING, _list(TEXT_BLOCK)]},
            is_error={"type": "boolean"},
        ),
        _object("type thinking", type=_one_of("thinking"), thinking=STRING, signature=STRING),
    ]
}
ANTHROPIC_MESSAGE = _object(
    "role content", role=_one_of("user", "assistant"), content={"anyOf": [STRING, _list(BLOCK)]}
)
ANTHROPIC_TOOL = _object("name input_schema", name=NAME, description=STRING, input_schema=ANY_OBJECT)

ITEM = {
    "anyOf": [
        _object("role content", type=_one_of("message"), role=_one_of("user", "assistant", "developer"), content=PARTS),
        _object(
            "type call_id name arguments", type=_one_of("function_call"), call_id=STRING, name=STRING, arguments=STRING
        ),
        _object("type call_id output", type=_one_of("function_call_output"), call_id=STRING, output=PARTS),
        _object("type", type=_one_of("reasoning")),
    ]
}
RESPONSE_TOOL = _object("type", type=STRING, name=NAME, description=STRING, parameters=ANY_OBJECT)

ChatMessages = Annotated[
    list[JsonObject],
    Field(min_length=1, max_length=MAX_MESSAGES),
    WithJsonSchema(_list(MESSAGE, MAX_MESSAGES, least=1)),
]
ChatTools = Annotated[list[JsonObject], Field(max_length=MAX_TOOLS), WithJsonSchema(_list(TOOL, MAX_TOOLS))]
AnthropicMessages = Annotated[
    list[JsonObject],
    Field(min_length=1, max_length=MAX_MESSAGES),
    WithJsonSchema(_list(ANTHROPIC_MESSAGE, MAX_MESSAGES, least=1)),
]
AnthropicTools = Annotated[
    list[JsonObject], Field(max_length=MAX_TOOLS), WithJsonSchema(_list(ANTHROPIC_TOOL, MAX_TOOLS))
]
ResponseItems = Annotated[list[JsonObject], Field(max_length=MAX_MESSAGES), WithJsonSchema(_list(ITEM, MAX_MESSAGES))]
ResponseTools = Annotated[
    list[JsonObject], Field(max_length=MAX_TOOLS), WithJsonSchema(_list(RESPONSE_TOOL, MAX_TOOLS))
]
