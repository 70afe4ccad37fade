"""Errors of the Anthropic API: its shape, its types, and what its own client makes of them."""

import threading
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import pytest
from messages_client import HELLO, MESSAGES, TOOLS, ask, client_of
from serve_fixtures import Server, running_server, scripted_service
from token_script import engine_of, script_service, will_write

UNENFORCEABLE = {"name": "odd", "input_schema": {"type": "array"}}
BEGUN: list[Any] = [*HELLO, {"role": "assistant", "content": "So"}]


@pytest.fixture(scope="module")
def one() -> Iterator[Server]:
    with running_server(script_service) as running:
        running.wait_until(lambda: running.session.state == "ready")
        yield running


def error_of(answer: httpx.Response) -> tuple[int, str, str]:
    body = answer.json()
    assert set(body) == {"type", "error"}
    assert (body["type"], set(body["error"]) - {"details"}) == ("error", {"type", "message"})
    return answer.status_code, body["error"]["type"], body["error"]["message"]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "critic", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages[0].content[0]"),
        ({"system": 3}, "system"),
        ({"system": [{"type": "image"}]}, "system[0]"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"stop_sequences": ["x"] * 17}, "stop_sequences"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": 1.5}, "top_k"),
        ({"n": 2}, "n"),
        ({"stream": "yes"}, "stream"),
        ({"metadata": {"user_id": 3}}, "metadata.user_id"),
        ({"mcp_servers": [{"url": "x"}]}, "mcp_servers"),
        ({"thread": {"type": "create"}}, "thread"),
        ({"compaction": {"type": "summarize"}}, "compaction"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format.type"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0]"),
        ({"tools": [{"name": "a b", "input_schema": {}}]}, "tools[0].name"),
        ({"tools": [{"name": "a"}]}, "tools[0].input_schema"),
        ({"tools": [TOOLS[0] | {"description": 3}]}, "tools[0].description"),
        ({"tools": TOOLS, "tool_choice": {"type": "required"}}, "tool_choice.type"),
        ({"tools": TOOLS, "tool_choice": {"type": "tool", "name": "other"}}, "tool_choice.name"),
        ({"tools": TOOLS, "tool_choice": {"type": "any", "disable_parallel_tool_use": 1}}, "tool_choice.disable"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tool_choice": {"type": "any"}, "tools": [TOOLS[0], UNENFORCEABLE]}, "tools[1].input_schema"),
        (
            {
                "tool_choice": {"type": "any"},
                "tools": TOOLS,
                "output_config": {"format": {"type": "json_schema", "schema": {}}},
            },
            "tool_choice: a forced call leaves no room for output_config.format",
        ),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"tool_choice": {"type": "any"}, "tools": TOOLS, "messages": BEGUN}, "tool_choice"),
        (
            {"output_config": {"format": {"type": "json_schema", "schema": {}}}, "messages": BEGUN},
            "output_config.format",
        ),
        ({"messages": [{"role": "system", "content": []}]}, "messages"),
        ({"messages": [{"role": "assistant", "content": [{"type": "tool_use"}]}]}, "messages[0].content[0].id"),
    ],
)
def test_each_bad_field_is_a_400_that_names_it(one: Server, change: dict[str, Any], param: str) -> None:
    status, kind, message = error_of(one.post(MESSAGES, {"model": "m", "messages": HELLO, "max_tokens": 2} | change))
    assert (status, kind) == (400, "invalid_request_error")
    assert message.startswith(param)


def test_server_tool_is_named(one: Server) -> None:
    with pytest.raises(anthropic.BadRequestError, match="web_search_20250305"):
        ask(one, tools=[{"type": "web_search_20250305", "name": "web_search"}])


def test_answer_without_its_results_is_refused(one: Server) -> None:
    call = {"type": "tool_use", "id": "x", "name": "bash", "input": {}}
    with pytest.raises(anthropic.BadRequestError, match="need their results"):
        ask(one, [*HELLO, {"role": "assistant", "content": [call]}], tools=TOOLS)


def test_long_prompt_is_refused_in_the_words_that_clients_know(one: Server) -> None:
    with pytest.raises(anthropic.BadRequestError, match=r"prompt is too long: \d+ tokens > 19999 maximum"):
        ask(one, [{"role": "user", "content": "x" * 20000}])


def test_bad_json_and_unknown_paths_keep_the_error_shape(one: Server) -> None:
    headers = {"content-type": "application/json"}
    broken = httpx.post(f"{one.url}{MESSAGES}", content=b'{"a":', headers=headers)
    status, kind, message = error_of(broken)
    assert (status, kind, "not valid JSON" in message) == (400, "invalid_request_error", True)
    assert error_of(one.post(f"{MESSAGES}/batches", {}))[:2] == (404, "not_found_error")
    assert error_of(httpx.get(f"{one.url}{MESSAGES}"))[:2] == (405, "invalid_request_error")
    assert "param" in one.post("/v1/messagesx", {}).json()["error"]


def test_keys_in_either_header_and_anthropic_errors_without() -> None:
    with running_server(scripted_service, api_keys=["first", "second"]) as server:
        server.wait_until(lambda: server.session.state == "ready")
        body: Any = {"model": "m", "messages": HELLO, "max_tokens": 2}
        for headers in ({}, {"x-api-key": "firs"}, {"x-api-key": ""}, {"authorization": "Bearer x"}):
            assert error_of(server.post(MESSAGES, body, headers=headers))[:2] == (401, "authentication_error")
        for headers in ({"x-api-key": "second"}, {"authorization": "Bearer first"}):
            assert server.post(MESSAGES, body, headers=headers).status_code == 200
        with pytest.raises(anthropic.AuthenticationError):
            client_of(server, "wrong").messages.create(**body)
        assert client_of(server, "first").messages.create(**body).content


def test_failures_before_and_in_the_middle_of_a_stream() -> None:
    with running_server(scripted_service) as server:
        server.wait_until(lambda: server.session.state == "ready")
        with pytest.raises(anthropic.BadRequestError, match="does not fit"):
            ask(server, [{"role": "user", "content": "refuse"}], max_tokens=3, stream=True)
        with pytest.raises(anthropic.InternalServerError, match="boom"):
            ask(server, [{"role": "user", "content": "explode"}], max_tokens=3, stream=True)
    with running_server(script_service) as server:
        server.wait_until(lambda: server.session.state == "ready")
        engine = engine_of(server)
        will_write(server, "abc")
        steps, seen = iter([engine.step]), threading.Event()

        def step_once() -> Any:
            for step in steps:
                return step()
            seen.wait(30)
            raise RuntimeError("boom")

        engine.step = step_once  # type: ignore[method-assign]
        events = iter(ask(server, stream=True))
        assert next(events).type == "message_start"
        seen.set()
        with pytest.raises(anthropic.APIError, match="boom"):
            list(events)


def test_a_server_that_still_loads_says_overloaded() -> None:
    gate = threading.Event()

    def slowly() -> Any:
        gate.wait(30)
        return scripted_service()

    with running_server(slowly) as server:
        answer = server.post(MESSAGES, {"messages": HELLO, "max_tokens": 2})
        gate.set()
        assert error_of(answer)[:2] == (503, "overloaded_error")
        server.wait_until(lambda: server.session.state == "ready")
