"""The Anthropic API as its own client sees it, over an engine that writes given tokens."""

import json
import threading
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import pytest
from serve_fixtures import Server, running_server, scripted_service
from token_script import engine_of, script_service, will_write, xml

MESSAGES, COUNT = "/v1/messages", "/v1/messages/count_tokens"
BASH = {"type": "object", "properties": {"command": {"type": "string"}, "n": {"type": "number"}}}
TOOLS: list[Any] = [
    {"name": "bash", "description": "run", "input_schema": BASH},
    {"name": "edit", "input_schema": {"type": "object"}},
]
HELLO: list[Any] = [{"role": "user", "content": "go"}]
CODE = 'if a < b and x["é"]:\n\treturn "</div>"\n'
OPEN = "<tool_call>\n"


@pytest.fixture(scope="module", params=[1, 7])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with running_server(lambda: script_service(stride=request.param)) as running:
        running.wait_until(lambda: running.session.state == "ready")
        yield running


@pytest.fixture(scope="module")
def one() -> Iterator[Server]:
    """For tests to which the stride makes no difference."""
    with running_server(script_service) as running:
        running.wait_until(lambda: running.session.state == "ready")
        yield running


def client_of(server: Server, key: str = "none") -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.url, api_key=key, max_retries=0, timeout=60)


def ask(server: Server, messages: list[Any] = HELLO, **options: Any) -> Any:
    return client_of(server).messages.create(model="m", messages=messages, **({"max_tokens": 500} | options))


def ask_streamed(server: Server, messages: list[Any] = HELLO, **options: Any) -> Any:
    options = {"max_tokens": 500} | options
    with client_of(server).messages.stream(model="m", messages=messages, **options) as stream:
        return stream.get_final_message()


def blocks_of(message: Any) -> list[Any]:
    return [block.text if block.type == "text" else (block.name, block.input) for block in message.content]


def prompt_of(server: Server) -> str:
    assert server.session.service is not None
    return server.session.service.tokenizer.decode(engine_of(server).requests[-1].prompt_ids, special=True)


def test_plain_and_streamed_text_agree(server: Server) -> None:
    will_write(server, "héllo 🙂", "héllo 🙂")
    plain, streamed = ask(server), ask_streamed(server)
    for message in (plain, streamed):
        assert (blocks_of(message), message.stop_reason, message.stop_sequence) == (["héllo 🙂"], "end_turn", None)
        assert (message.role, message.type, message.model) == ("assistant", "message", "script")
        assert message.id.startswith("msg_")
        assert message.usage.output_tokens == len("héllo 🙂".encode()) + 1
    assert plain.usage.input_tokens + (plain.usage.cache_read_input_tokens or 0) == len(
        engine_of(server).requests[-1].prompt_ids
    )
    assert streamed.usage.cache_read_input_tokens == len(engine_of(server).requests[-1].prompt_ids)
    assert streamed.usage.input_tokens == streamed.usage.cache_creation_input_tokens == 0


def test_plain_and_streamed_calls_agree(server: Server) -> None:
    answer = "I look.\n\n" + xml("bash", command=CODE, n="2") + "\n" + xml("edit") + "\n"
    will_write(server, answer, answer)
    for message in (ask(server, tools=TOOLS), ask_streamed(server, tools=TOOLS)):
        assert blocks_of(message) == ["I look.", ("bash", {"command": CODE, "n": 2}), ("edit", {})]
        assert message.stop_reason == "tool_use"
        assert len({block.id for block in message.content[1:]}) == 2


def test_events_come_in_the_order_of_the_protocol(server: Server) -> None:
    will_write(server, "Ok. " + xml("bash", n="1"))
    body = {"model": "m", "messages": HELLO, "max_tokens": 200, "stream": True, "tools": TOOLS}
    answer = server.post(MESSAGES + "?beta=true", body, headers={"anthropic-version": "2023-06-01"})
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [part.split("\ndata: ") for part in answer.text.removesuffix("\n\n").split("\n\n")]
    data = [json.loads(text) for _, text in events]
    assert [name for name, _ in events] == [f"event: {each['type']}" for each in data]
    kinds = [each["type"].removeprefix("content_block_") for each in data]
    shape = [kind for i, kind in enumerate(kinds) if kind != "delta" or kinds[i - 1] != "delta"]
    block = ["start", "delta", "stop"]
    assert shape == ["message_start", *block, *block, "message_delta", "message_stop"]
    assert [each["index"] for each in data if each["type"] == "content_block_start"] == [0, 1]
    assert data[-2]["sweq"].keys() >= {"cached_tokens", "replayed_turns"}


def test_token_limit_and_stop_sequence_say_so(server: Server) -> None:
    for send in (ask, ask_streamed):
        will_write(server, "one two END three", "one two")
        stopped = send(server, stop_sequences=["never", " END"])
        assert (blocks_of(stopped), stopped.stop_reason, stopped.stop_sequence) == (
            ["one two"],
            "stop_sequence",
            " END",
        )
        cut = send(server, max_tokens=3)
        assert (blocks_of(cut), cut.stop_reason, cut.usage.output_tokens) == (["one"], "max_tokens", 3)


def test_call_cut_by_the_token_limit_keeps_what_is_complete(server: Server) -> None:
    answer = xml("bash", n="3", command="x" * 50)
    for send in (ask, ask_streamed):
        will_write(server, answer)
        message = send(server, tools=TOOLS, max_tokens=len(answer) - 60)
        ((name, arguments),) = blocks_of(message)
        assert (name, arguments["n"], message.stop_reason) == ("bash", 3, "max_tokens")


def test_empty_answer_has_no_blocks(server: Server) -> None:
    will_write(server, [], [])
    assert [blocks_of(ask(server)), blocks_of(ask_streamed(server))] == [[], []]


@pytest.mark.parametrize("text", ["", "So:  "])
@pytest.mark.parametrize("send", [ask, ask_streamed])
def test_turn_that_comes_back_hits_the_cache_in_full(server: Server, text: str, send: Any) -> None:
    service = server.session.service
    assert service is not None
    tokenizer = service.tokenizer
    odd = "<tool_call>\n<function=bash>\n<parameter=command>\nls a"
    rest = "b\n\n</parameter><parameter=n>\n1.0\n</parameter></function></tool_call>\n<tool_call>\n<function=edit>"
    # "a" and "b" as two tokens, which the tokenizer would write as one.
    generated = tokenizer.encode(text + odd) + tokenizer.encode(rest + "\n</function>\n</tool_call>")
    will_write(server, generated, "done")
    messages: list[Any] = [{"role": "user", "content": f"replay {text!r} {send.__name__}"}]
    message = send(server, messages, tools=TOOLS)
    first = len(engine_of(server).requests[-1].prompt_ids)
    results = [
        {"type": "tool_result", "tool_use_id": block.id, "content": [{"type": "text", "text": "a.py"}]}
        for block in message.content
        if block.type == "tool_use"
    ]
    assert len(results) == 2
    sent_back = [block.model_dump(exclude_none=True) for block in message.content]
    messages += [{"role": "assistant", "content": sent_back}, {"role": "user", "content": results}]
    answer = ask(server, messages, tools=TOOLS)
    # All that was generated, and the turn's end, which both the model and the template wrote.
    assert answer.usage.cache_read_input_tokens == first + len(generated) + 1
    assert answer.model_extra["sweq"]["replayed_tokens"] == len(generated)
    assert answer.model_extra["sweq"]["tokenized_turns"] == 0


def test_forced_call_and_its_replay(one: Server) -> None:
    call = xml("bash", n="1.50").removeprefix(OPEN)
    for choice in ({"type": "any"}, {"type": "tool", "name": "bash"}):
        will_write(one, call, "done")
        messages: list[Any] = [{"role": "user", "content": f"forced {choice}"}]
        message = ask(one, messages, tools=TOOLS, tool_choice=choice)
        assert (blocks_of(message), message.stop_reason) == ([("bash", {"n": 1.5})], "tool_use")
        assert prompt_of(one).endswith(f"assistant\n{OPEN}")
        assert engine_of(one).requests[-1].params.grammar is not None
        messages += [{"role": "assistant", "content": message.content}, *HELLO]
        assert ask(one, messages, tools=TOOLS).model_extra["sweq"]["replayed_turns"] == 1


def test_one_call_at_most_and_none_at_all(one: Server) -> None:
    will_write(one, xml("bash") + "\n" + xml("edit"), "text")
    choice = {"type": "auto", "disable_parallel_tool_use": True}
    assert blocks_of(ask(one, tools=TOOLS, tool_choice=choice)) == [("bash", {})]
    assert blocks_of(ask(one, tools=TOOLS, tool_choice={"type": "none"})) == ["text"]
    assert engine_of(one).requests[-1].params.logit_bias


def test_last_assistant_message_begins_the_answer(one: Server) -> None:
    will_write(one, " is 7", "more")
    messages: list[Any] = [*HELLO, {"role": "assistant", "content": "The answer"}]
    assert blocks_of(ask(one, messages)) == [" is 7"]
    assert prompt_of(one).endswith("<|im_start|>assistant\nThe answer")
    back = [*HELLO, {"role": "assistant", "content": "The answer is 7"}, *HELLO]
    assert ask(one, back).model_extra["sweq"]["tokenized_turns"] == 1


def test_sampling_fields_reach_the_engine(one: Server) -> None:
    will_write(one, "a")
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    ask(
        one,
        stop_sequences=["x"],
        metadata={"user_id": "me"},
        output_config={"format": {"type": "json_schema", "schema": schema}},
        extra_body={"temperature": 0.5, "top_p": 0.9, "top_k": 7, "seed": 3, "session_id": "task"},
    )
    request = engine_of(one).requests[-1]
    params = request.params
    assert (params.temperature, params.top_p, params.top_k, params.seed) == (0.5, 0.9, 7, 3)
    assert (params.max_tokens, params.stop, request.session_id) == (500, ("x",), "task")
    assert params.grammar is not None
    assert json.loads(params.grammar.text) == schema


def test_count_is_exact(one: Server) -> None:
    system: Any = [{"type": "text", "text": "You help.", "cache_control": {"type": "ephemeral"}}]
    for options in ({}, {"tools": TOOLS}, {"tools": TOOLS, "tool_choice": {"type": "any"}}):
        will_write(one, xml("bash").removeprefix(OPEN))
        count = client_of(one).messages.count_tokens(model="m", messages=HELLO, system=system, **options)
        usage = ask(one, system=system, **options).usage
        assert count.input_tokens == usage.input_tokens + usage.cache_read_input_tokens
        assert count.input_tokens == len(engine_of(one).requests[-1].prompt_ids)


def test_what_claude_code_sends(one: Server) -> None:
    header = "x-anthropic-billing-header: cc_version=2.1; cc_entrypoint=cli; cch={};"
    cached = {"cache_control": {"type": "ephemeral"}}
    schema = BASH | {"$schema": "https://json-schema.org/draft/2020-12/schema", "additionalProperties": False}
    body: dict[str, Any] = {
        "model": "claude-opus",
        "max_tokens": 32000,
        "stream": True,
        "thinking": {"type": "adaptive"},
        "metadata": {"user_id": "user_1_account__session_2"},
        "context_management": {"edits": []},
        "output_config": {"effort": "high"},
        "tools": [{"name": f"Tool{i}", "description": "d", "input_schema": schema} for i in range(25)],
        "messages": [
            {
                "role": "user",
                "content": [{"type": "text", "text": "<system-reminder>"}, {"type": "text", "text": "go"}],
            },
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "", "signature": ""},
                    {"type": "text", "text": ""},
                    {"type": "tool_use", "id": "toolu_9", "name": "Tool1", "input": {"n": 1}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "toolu_9", "content": "no", "is_error": True, **cached},
                    {"type": "text", "text": "try again"},
                ],
            },
            {"role": "system", "content": "The date changed."},
        ],
    }
    headers = {"anthropic-version": "2023-06-01", "anthropic-beta": "claude-code-20250219", "x-app": "cli"}
    for cch in ("11111", "22222"):
        will_write(one, "done")
        system = [{"type": "text", "text": header.format(cch)}, {"type": "text", "text": "You help.", **cached}]
        answer = one.post(f"{MESSAGES}?beta=true", body | {"system": system}, headers=headers)
        assert answer.status_code == 200
        assert answer.text.rstrip().endswith('data: {"type": "message_stop"}')
    first, second = engine_of(one).requests[-2:]
    assert first.prompt_ids == second.prompt_ids
    prompt = prompt_of(one)
    assert prompt.startswith("<|im_start|>system\nYou help.")
    assert "<tool_response>\nError: no\n</tool_response>" in prompt
    assert prompt.endswith(
        "try again<|im_end|>\n<|im_start|>system\nThe date changed.<|im_end|>\n<|im_start|>assistant\n"
    )
    assert "cch" not in prompt
    assert httpx.head(one.url).status_code == 200


def error_of(answer: httpx.Response) -> tuple[int, str, str]:
    body = answer.json()
    assert set(body) == {"type", "error"}
    assert (body["type"], set(body["error"])) == ("error", {"type", "message"})
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
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format.type"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0]"),
        ({"tools": [{"name": "a b", "input_schema": {}}]}, "tools[0].name"),
        ({"tools": [{"name": "a"}]}, "tools[0].input_schema"),
        ({"tools": [TOOLS[0] | {"description": 3}]}, "tools[0].description"),
        ({"tools": TOOLS, "tool_choice": {"type": "required"}}, "tool_choice.type"),
        ({"tools": TOOLS, "tool_choice": {"type": "tool", "name": "other"}}, "tool_choice.name"),
        ({"tools": TOOLS, "tool_choice": {"type": "any", "disable_parallel_tool_use": 1}}, "tool_choice.disable"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tool_choice": "auto"}, "tool_choice"),
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
        steps = iter([engine.step])

        def step_once() -> Any:
            for step in steps:
                return step()
            raise RuntimeError("boom")

        engine.step = step_once  # type: ignore[method-assign]
        events = iter(ask(server, stream=True))
        assert next(events).type == "message_start"
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
