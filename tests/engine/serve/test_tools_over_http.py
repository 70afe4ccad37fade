"""Tools and replay as a client sees them, over an engine that writes given tokens."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from openai import OpenAI
from serve_fixtures import Server, running_server
from token_script import engine_of, hermes, plain_service, script_service, will_write, xml

BASH = {"type": "object", "properties": {"command": {"type": "string"}, "n": {"type": "number"}}}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "bash", "description": "run", "parameters": BASH}},
    {"type": "function", "function": {"name": "edit.file"}},
]
HELLO: list[Any] = [{"role": "user", "content": "go"}]
CHAT = "/v1/chat/completions"

CODE = 'if a < b and x["é"]:\n\treturn "</div>"\n'


@pytest.fixture(scope="module", params=[1, 7])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with running_server(lambda: script_service(stride=request.param)) as running:
        running.wait_until(lambda: running.session.state == "ready")
        yield running


def ask(client: OpenAI, messages: list[Any] = HELLO, **options: Any) -> Any:
    return client.chat.completions.create(model="m", messages=messages, **({"tools": TOOLS} | options))


def collect(chunks: Any) -> tuple[str, list[dict[str, Any]], str]:
    """Text, calls and finish reason of a stream, put together as clients do: by index, strings appended."""
    text, calls, reason = "", list[dict[str, Any]](), ""
    for chunk in chunks:
        for choice in chunk.choices:
            text += choice.delta.content or ""
            reason = choice.finish_reason or reason
            assert len(choice.delta.tool_calls or []) <= 1
            for call in choice.delta.tool_calls or []:
                if call.id:
                    assert (call.index, call.type) == (len(calls), "function")
                    calls.append({"id": call.id, "name": call.function.name, "arguments": ""})
                calls[call.index]["arguments"] += call.function.arguments or ""
    return text, calls, reason


def names_and_arguments(message: Any) -> list[tuple[str, str]]:
    return [(call.function.name, call.function.arguments) for call in message.tool_calls or []]


def test_plain_and_streamed_calls_agree(server: Server) -> None:
    answer = "I look.\n\n" + xml("bash", command=CODE, n="2") + "\n" + xml("edit.file", any="1") + "\n"
    will_write(server, answer, answer)
    plain = ask(server.client()).choices[0]
    text, calls, reason = collect(ask(server.client(), stream=True))
    assert (plain.message.content, plain.finish_reason) == (text, reason) == ("I look.", "tool_calls")
    assert names_and_arguments(plain.message) == [(call["name"], call["arguments"]) for call in calls]
    assert [json.loads(call["arguments"]) for call in calls] == [{"command": CODE, "n": 2}, {"any": "1"}]
    assert len({call.id for call in plain.message.tool_calls} | {call["id"] for call in calls}) == 4


def test_call_without_text_has_null_content(server: Server) -> None:
    will_write(server, xml("bash"), "only text")
    first = ask(server.client()).choices[0]
    assert (first.message.content, names_and_arguments(first.message)) == (None, [("bash", "{}")])
    second = ask(server.client()).choices[0]
    assert (second.message.content, second.message.tool_calls, second.finish_reason) == ("only text", None, "stop")


def test_call_cut_by_the_token_limit_says_length(server: Server) -> None:
    answer = xml("bash", n="3", command="x" * 50)
    cut = '{"n": 3, "command": "' + "x" * 38 + '"}'
    for stream in (False, True):
        will_write(server, answer)
        options = {"max_tokens": len(answer) - 60, "stream": stream}
        if stream:
            _, calls, reason = collect(ask(server.client(), **options))
            assert ([call["arguments"] for call in calls], reason) == ([cut], "length")
        else:
            choice = ask(server.client(), **options).choices[0]
            assert (names_and_arguments(choice.message), choice.finish_reason) == ([("bash", cut)], "length")


def test_parallel_calls_can_be_switched_off(server: Server) -> None:
    will_write(server, xml("bash") + "\n" + xml("edit.file"))
    choice = ask(server.client(), parallel_tool_calls=False).choices[0]
    assert (names_and_arguments(choice.message), choice.finish_reason) == ([("bash", "{}")], "tool_calls")


def test_choice_none_bans_the_call_and_keeps_the_prompt(server: Server) -> None:
    will_write(server, "a", "b")
    ask(server.client())
    ask(server.client(), tool_choice="none")
    auto, none = engine_of(server).requests[-2:]
    assert auto.prompt_ids == none.prompt_ids
    open_id = server.session.service.tokenizer.token_id("<tool_call>")  # type: ignore[union-attr]
    assert none.params.logit_bias[open_id] < -1000
    assert not auto.params.logit_bias


NAMED = {"type": "function", "function": {"name": "bash"}}


@pytest.mark.parametrize(("choice", "names"), [("required", ["bash", "edit.file"]), (NAMED, ["bash"])])
def test_forced_call_begins_in_the_prompt_and_follows_a_grammar(server: Server, choice: Any, names: list[str]) -> None:
    will_write(server, xml("bash", command="ls").removeprefix("<tool_call>\n"))
    answer = ask(server.client(), tool_choice=choice).choices[0]
    assert (names_and_arguments(answer.message), answer.finish_reason) == (
        [("bash", '{"command": "ls"}')],
        "tool_calls",
    )
    request = engine_of(server).requests[-1]
    assert server.session.service.tokenizer.decode(request.prompt_ids).endswith("assistant\n<tool_call>\n")  # type: ignore[union-attr]
    assert request.params.grammar is not None
    assert [f"<function={name}>" in request.params.grammar.text for name in ("bash", "edit.file")] == [
        name in names for name in ("bash", "edit.file")
    ]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        (
            {"tools": [{"type": "function", "function": {"name": "a", "parameters": []}}]},
            "tools[0].function.parameters",
        ),
        ({"tools": "bash"}, "tools"),
        ({"tool_choice": "always"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
        ({"tool_choice": {"type": "function"}}, "tool_choice"),
        ({"tool_choice": "required", "tools": []}, "tool_choice"),
        ({"tool_choice": "required", "response_format": {"type": "json_object"}}, "tool_choice"),
        ({"parallel_tool_calls": "no"}, "parallel_tool_calls"),
    ],
)
def test_each_bad_field_about_tools_is_a_400_that_names_it(server: Server, change: Any, param: str) -> None:
    answer = server.post(CHAT, {"messages": HELLO, "tools": TOOLS} | change)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert param in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("service", "reason"),
    [
        (lambda: script_service("{{ messages[0].content }}"), "chat template has no tools"),
        (lambda: script_service("{{ tools }}"), "has no tool calls of a known form"),
        (plain_service, "<tool_call>, which is not a token"),
    ],
)
def test_model_that_cannot_call_says_why(service: Callable[[], Any], reason: str) -> None:
    with running_server(service) as server:
        server.wait_until(lambda: server.session.state == "ready")
        answer = server.post(CHAT, {"messages": HELLO, "tools": TOOLS})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tools")
        assert reason in answer.json()["error"]["message"]


def test_hermes_calls_over_http() -> None:
    with running_server(lambda: script_service("hermes", stride=3)) as server:
        server.wait_until(lambda: server.session.state == "ready")
        will_write(
            server, "Ok\n" + hermes("bash", command=CODE), hermes("bash", command=CODE).removeprefix("<tool_call>\n")
        )
        choice = ask(server.client()).choices[0]
        assert (choice.message.content, choice.finish_reason) == ("Ok", "tool_calls")
        assert json.loads(choice.message.tool_calls[0].function.arguments) == {"command": CODE}
        _, calls, _ = collect(ask(server.client(), tool_choice="required", stream=True))
        assert [json.loads(call["arguments"]) for call in calls] == [{"command": CODE}]


def as_openai(message: Any) -> dict[str, Any]:
    dumped: dict[str, Any] = message.model_dump()
    return dumped


def as_openai_without_nulls(message: Any) -> dict[str, Any]:
    dumped: dict[str, Any] = message.model_dump(exclude_none=True)
    return dumped


def as_litellm(message: Any) -> dict[str, Any]:
    """litellm's own keys, calls with an index, text trimmed."""
    calls = [call.model_dump() | {"index": i} for i, call in enumerate(message.tool_calls)]
    extra = {"function_call": None, "provider_specific_fields": {"refusal": None}, "annotations": []}
    return {"role": "assistant", "content": (message.content or "").strip(), "tool_calls": calls, **extra}


def as_anthropic(message: Any) -> dict[str, Any]:
    """Text as a list of blocks; arguments parsed and written again, compactly, as JavaScript does."""
    blocks = [{"type": "text", "text": message.content}] if message.content else []
    calls = [
        {"id": call.id, "function": {"name": call.function.name, "arguments": javascript(call.function.arguments)}}
        for call in message.tool_calls
    ]
    return {"role": "assistant", "content": blocks, "tool_calls": calls}


def javascript(text: str) -> str:
    whole = {key: int(value) if value == 1.0 else value for key, value in json.loads(text).items()}
    return json.dumps(whole, separators=(",", ":"), ensure_ascii=False)


ODD = "Loo\n<tool_call>\n<function=bash>\n<parameter=command>\nls ab\n\n</parameter>"
ODD += "<parameter=n>\n1.0\n</parameter></function></tool_call>"


@pytest.mark.parametrize("text", ["", "So:  "])
@pytest.mark.parametrize("send_back", [as_openai, as_openai_without_nulls, as_litellm, as_anthropic])
@pytest.mark.parametrize("stream", [False, True])
def test_turn_that_comes_back_hits_the_cache_in_full(server: Server, text: str, send_back: Any, stream: bool) -> None:
    service = server.session.service
    assert service is not None
    tokenizer = service.tokenizer
    letters = [tokenizer.encode(letter)[0] for letter in "ab"]
    # Not what the tokenizer would make of "ab".
    generated = [*tokenizer.encode(text + ODD.split("ab")[0]), *letters, *tokenizer.encode(ODD.split("ab")[1])]
    will_write(server, generated, "done")
    messages = [{"role": "user", "content": f"go {text} {send_back.__name__} {stream} {engine_of(server).stride}"}]
    if stream:
        from openai.types.chat import ChatCompletionMessage

        content, calls, _ = collect(ask(server.client(), messages, stream=True))
        functions = [{"name": call["name"], "arguments": call["arguments"]} for call in calls]
        wire = [{"id": call["id"], "type": "function", "function": f} for call, f in zip(calls, functions, strict=True)]
        message = ChatCompletionMessage.model_validate(
            {"role": "assistant", "content": content or None, "tool_calls": wire}
        )
    else:
        message = ask(server.client(), messages).choices[0].message
    first = len(engine_of(server).requests[-1].prompt_ids)
    messages += [send_back(message), {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "a.py"}]
    answer = ask(server.client(), messages)
    # All that was generated, and the turn's end, which both the model and the template wrote.
    assert answer.usage.prompt_tokens_details.cached_tokens == first + len(generated) + 1
    assert answer.model_extra["sweq"] == {
        "cached_tokens": first + len(generated) + 1,
        "cache_source": "device",
        "replayed_turns": 1,
        "replayed_tokens": len(generated),
        "tokenized_turns": 0,
    }


def test_edited_turn_is_tokenized_and_streams_tell_so(server: Server) -> None:
    will_write(server, "abc", "done")
    message = ask(server.client()).choices[0].message
    messages = [*HELLO, {"role": "assistant", "content": message.content + "!"}, *HELLO]
    chunks = list(ask(server.client(), messages, stream=True))
    found = [chunk.model_extra["sweq"] for chunk in chunks if "sweq" in (chunk.model_extra or {})]
    assert [(each["replayed_turns"], each["tokenized_turns"]) for each in found] == [(0, 1)]


def test_forced_call_is_replayed_with_its_lead(server: Server) -> None:
    call = xml("bash", n="1.50").removeprefix("<tool_call>\n")
    will_write(server, call, "done")
    messages: list[Any] = [{"role": "user", "content": "forced"}]
    message = ask(server.client(), messages, tool_choice="required").choices[0].message
    request = engine_of(server).requests[-1]
    assert server.session.service is not None
    generated = len(server.session.service.tokenizer.encode(call))
    answer = ask(server.client(), [*messages, message, {"role": "tool", "tool_call_id": "x", "content": "y"}])
    assert answer.model_extra["sweq"]["replayed_tokens"] == 2 + generated
    assert answer.usage.prompt_tokens_details.cached_tokens == len(request.prompt_ids) + generated + 1


@pytest.mark.parametrize("ending", [{"max_tokens": 60}, {"stop": ["</function>"]}])
def test_broken_off_call_is_not_replayed(server: Server, ending: dict[str, Any]) -> None:
    will_write(server, "Broken off: " + xml("bash", command="ls"), "done")
    messages: list[Any] = [{"role": "user", "content": "broken"}]
    message = ask(server.client(), messages, **ending).choices[0].message
    answer = ask(server.client(), [*messages, message, *HELLO])
    assert answer.model_extra["sweq"]["replayed_turns"] == 0
