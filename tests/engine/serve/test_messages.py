"""The Anthropic API as its own client sees it, over an engine that writes given tokens."""

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import pytest
from messages_client import BASH, HELLO, MESSAGES, TOOLS, ask, ask_streamed, blocks_of, client_of, prompt_of
from pydantic import BaseModel
from serve_fixtures import Server, running_server
from token_script import engine_of, script_service, will_write, xml

CODE = 'if a < b and x["é"]:\n\treturn "</div>"\n'
OPEN = "<tool_call>\n"
ASSISTANT = "<|im_start|>assistant\n"


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


def test_answer_that_fills_the_context_says_so(server: Server) -> None:
    messages: list[Any] = [{"role": "user", "content": "x" * 19900}]
    for send in (ask, ask_streamed):
        will_write(server, "y" * 200)
        answer = send(server, messages, max_tokens=32000)
        assert (answer.stop_reason, len(blocks_of(answer)[0])) == (
            "model_context_window_exceeded",
            answer.usage.output_tokens,
        )
        assert len(engine_of(server).requests[-1].prompt_ids) + answer.usage.output_tokens == 20000


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


def test_the_library_s_own_agent_loop(one: Server) -> None:
    @anthropic.beta_tool
    def bash(command: str) -> str:
        """Run a command."""
        return f"ran {command}"

    will_write(one, "I look.\n" + xml("bash", command="ls ab"), "done")
    runner = client_of(one).beta.messages.tool_runner(
        model="m", max_tokens=300, messages=[{"role": "user", "content": "loop"}], tools=[bash]
    )
    first, last = list(runner)
    assert (first.stop_reason, last.stop_reason, blocks_of(last)) == ("tool_use", "end_turn", ["done"])
    # The library asks for a conversation kept by the server first, and sends the whole when that is refused.
    assert prompt_of(one).endswith("<tool_response>\nran ls ab\n</tool_response><|im_end|>\n" + ASSISTANT)
    assert (last.model_extra or {})["sweq"]["replayed_turns"] == 1


class Point(BaseModel):
    x: int


def test_the_library_s_structured_output(one: Server) -> None:
    will_write(one, '{"x": 3}')
    answer = client_of(one).messages.parse(model="m", max_tokens=90, messages=HELLO, output_format=Point)
    assert answer.parsed_output == Point(x=3)
    grammar = engine_of(one).requests[-1].params.grammar
    assert grammar is not None
    assert json.loads(grammar.text)["properties"]["x"]["type"] == "integer"


def test_models_are_listed(one: Server) -> None:
    assert [model.id for model in client_of(one).models.list()] == ["script"]


@pytest.mark.parametrize("send", [ask, ask_streamed])
def test_arguments_too_deep_to_come_back_are_answered_all_the_same(one: Server, send: Any) -> None:
    tool = {"name": "nest", "input_schema": {"type": "object", "properties": {"a": {"type": "array"}}}}
    deep = "[" * 150 + "]" * 150
    will_write(one, xml("nest", a=deep))
    (block,) = send(one, tools=[tool], max_tokens=1000).content
    assert json.dumps(block.input["a"]) == deep
