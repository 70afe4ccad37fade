"""Requests to `/v1/responses` that are refused."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from responses_client import PATH, TOOLS
from serve_fixtures import Server, running_server, scripted_service
from token_script import script_service

from engine.errors import RequestError
from engine.serve.responses.items_in import as_asked


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running_server(script_service) as running:
        running.wait_until(lambda: running.session.state == "ready")
        yield running


DEEP = '{"a":' * 600 + "1" + "}" * 600


def item(**fields: Any) -> dict[str, Any]:
    return {"input": [{"role": "user", "content": "x"}, fields]}


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"input": None}, "input"),
        ({"input": 3}, "input"),
        ({"input": []}, "input"),
        ({"input": ["x"]}, "input"),
        (item(role="critic", content="x"), "input[1].role"),
        (item(role="user", content=3), "input[1].content"),
        (item(role="user"), "input[1].content"),
        (item(role="user", content=[{"type": "input_image", "image_url": "x"}]), "input[1].content[0]"),
        (item(role="user", content=[{"type": "input_text", "text": 3}]), "input[1].content[0].text"),
        (item(type="computer_call"), "input[1].type"),
        (item(type=["message"]), "input[1].type"),
        (item(), "input[1].type"),
        (item(type="function_call", name="f", arguments="{}"), "input[1].call_id"),
        (item(type="function_call", call_id="c", arguments="{}"), "input[1].name"),
        (item(type="function_call", call_id="c", name="f", arguments="{"), "input[1].arguments"),
        (item(type="function_call", call_id="c", name="f", arguments="[]"), "input[1].arguments"),
        (item(type="function_call", call_id="c", name="f", arguments=DEEP), "input[1].arguments"),
        (item(type="function_call_output", output="x"), "input[1].call_id"),
        (item(type="function_call_output", call_id="c"), "input[1].output"),
        (item(type="item_reference", id=3), "input[1].id"),
        ({"instructions": ["x"]}, "instructions"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"stream": "yes"}, "stream"),
        ({"store": 1}, "store"),
        ({"include": "x"}, "include"),
        ({"include": ["message.output_text.logprobs"]}, "include"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"truncation": "middle"}, "truncation"),
        ({"reasoning": "high"}, "reasoning"),
        ({"user": 3}, "user"),
        ({"prompt_cache_key": "x" * 257}, "prompt_cache_key"),
        ({"previous_response_id": 3}, "previous_response_id"),
        ({"parallel_tool_calls": "no"}, "parallel_tool_calls"),
        ({"text": "json"}, "text"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema"),
        ({"text": {"format": {"type": "json_object"}}, "response_format": {"type": "json_object"}}, "text.format"),
        ({"tools": "bash"}, "tools"),
        ({"tools": [3]}, "tools[0]"),
        ({"tools": [{"type": 3}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "name": "a b"}]}, "tools[0].name"),
        ({"tools": [{"type": "function", "name": 3}]}, "tools[0].name"),
        ({"tools": [{"type": "function", "name": "a", "parameters": []}]}, "tools[0].parameters"),
        ({"tools": [{"type": "function", "name": "a", "description": 3}]}, "tools[0].description"),
        ({"tool_choice": 3}, "tool_choice"),
        ({"tool_choice": "always"}, "tool_choice"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice"),
        ({"tool_choice": {"type": "function"}}, "tool_choice"),
        ({"tool_choice": {"type": "function", "name": "other"}}, "tool_choice"),
        ({"tool_choice": "required", "tools": [{"type": "web_search"}]}, "tool_choice"),
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"n": 2}, "n"),
    ],
)
def test_each_bad_field_is_a_400_that_names_it(server: Server, change: dict[str, Any], param: str) -> None:
    answer = server.post(PATH, {"input": "go", "tools": TOOLS} | change)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert param in error["message"]


@pytest.mark.parametrize(
    ("chat", "asked"),
    [
        ("tools[0].function.parameters/properties/x", "tools[1].parameters/properties/x"),
        ("tools[1].function.name", "tools[3].name"),
        ("messages", "input"),
        ("temperature", "temperature"),
        (None, None),
    ],
)
def test_errors_of_chat_name_the_fields_of_this_request(chat: str | None, asked: str | None) -> None:
    tools = [{"type": "web_search"}, TOOLS[0], {"type": "function"}, {"type": "function", "function": {"name": "f"}}]
    error = as_asked(RequestError(f"{chat}: wrong", param=chat, code="c"), tools)
    assert (error.param, error.code) == (asked, "c")
    assert asked == "input" or str(error) == f"{asked}: wrong"


def test_missing_input_and_stream_of_a_kept_response_are_400s(server: Server) -> None:
    assert server.post(PATH, {}).json()["error"]["param"] == "input"
    answer = httpx.get(f"{server.url}{PATH}/resp_1", params={"stream": "true"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "stream")


def test_model_without_a_template_says_so() -> None:
    with running_server(lambda: scripted_service(template=None)) as server:
        server.wait_until(lambda: server.session.state == "ready")
        answer = server.post(PATH, {"input": "go"})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "input")
        assert "no chat template" in answer.json()["error"]["message"]
        assert server.post("/tokenize", {"messages": [{"role": "user", "content": "go"}]}).status_code == 400
        assert server.post("/tokenize", {"prompt": "go"}).status_code == 200
