"""`/v1/responses` as the openai library and Codex see it, over an engine that writes given tokens."""

import json
import logging
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from serve_fixtures import Server, running_server, scripted_service
from token_script import engine_of, script_service, will_write, xml

PATH = "/v1/responses"
BASH = {"type": "object", "properties": {"command": {"type": "string"}, "n": {"type": "number"}}}
TOOLS: list[Any] = [
    {"type": "function", "name": "bash", "description": "run", "parameters": BASH, "strict": False},
    {"type": "function", "name": "edit.file", "parameters": None},
]
CODE = 'if a < b and x["é"]:\n\treturn "</div>"\n'


@pytest.fixture(scope="module", params=[1, 7])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with running_server(lambda: script_service(stride=request.param)) as running:
        running.wait_until(lambda: running.session.state == "ready")
        yield running


@pytest.fixture(scope="module")
def any_server() -> Iterator[Server]:
    """For requests that the engine never sees."""
    with running_server(script_service) as running:
        running.wait_until(lambda: running.session.state == "ready")
        yield running


def strict(server: Server) -> openai.OpenAI:
    """A client that raises when an answer is not as the library's own types say."""
    url = f"{server.url}/v1"
    return openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60, _strict_response_validation=True)


def ask(server: Server, given: Any = "go", **options: Any) -> Any:
    return strict(server).responses.create(model="m", input=given, **({"tools": TOOLS} | options))


def prompt(server: Server) -> str:
    """The prompt of the latest request, with its special tokens."""
    assert server.session.service is not None
    return server.session.service.tokenizer.decode(engine_of(server).requests[-1].prompt_ids, special=True)


def without_ids(output: list[Any]) -> list[dict[str, Any]]:
    return [{k: v for k, v in item.model_dump().items() if k not in ("id", "call_id")} for item in output]


def test_plain_and_streamed_responses_agree(server: Server) -> None:
    answer = "I look.\n\n" + xml("bash", command=CODE, n="2") + "\n" + xml("edit.file", any="1") + "\n"
    will_write(server, answer, answer)
    plain = ask(server)
    with strict(server).responses.stream(model="m", input="go", tools=TOOLS) as stream:
        events = list(stream)
        streamed = stream.get_final_response()
    assert plain.output_text == streamed.output_text == "I look."
    assert [item.type for item in plain.output] == ["message", "function_call", "function_call"]
    assert [json.loads(item.arguments) for item in plain.output[1:]] == [{"command": CODE, "n": 2}, {"any": "1"}]
    assert (plain.status, plain.error, plain.incomplete_details, plain.object) == ("completed", None, None, "response")
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert len({item.id for item in [*plain.output, *streamed.output]}) == 6
    own = {k: v for k, v in streamed.model_dump().items() if k in plain.model_dump()}
    varying = {"id": streamed.id, "created_at": streamed.created_at, "completed_at": streamed.completed_at}
    compared = {**plain.model_dump(), **varying, "output": [], "usage": {}, "sweq": {}}
    assert {**own, "output": [], "usage": {}, "sweq": {}, "tools": compared["tools"]} == compared
    parsed = [{k: v for k, v in item.items() if k != "parsed_arguments"} for item in without_ids(streamed.output)]
    for item in parsed:
        for part in item.get("content") or []:
            part.pop("parsed", None)
    assert parsed == without_ids(plain.output)


def test_events_come_in_the_order_of_the_api(server: Server) -> None:
    will_write(server, "Hé!\n" + xml("bash", command="ls"))
    events = list(ask(server, stream=True))
    kinds = [event.type.removeprefix("response.") for event in events]
    once = [kind for i, kind in enumerate(kinds) if i == 0 or kinds[i - 1] != kind]
    assert once == [
        *("created", "in_progress"),
        *("output_item.added", "content_part.added", "output_text.delta"),
        *("output_text.done", "content_part.done", "output_item.done"),
        *("output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done"),
        "completed",
    ]
    by_kind = {kind: [event for event, name in zip(events, kinds, strict=True) if name == kind] for kind in kinds}
    text = "".join(event.delta for event in by_kind["output_text.delta"])
    assert text == by_kind["output_text.done"][0].text == by_kind["content_part.done"][0].part.text == "Hé!"
    arguments = "".join(event.delta for event in by_kind["function_call_arguments.delta"])
    done = by_kind["function_call_arguments.done"][0]
    assert arguments == done.arguments == by_kind["output_item.done"][1].item.arguments == '{"command": "ls"}'
    last = events[-1].response
    assert [event.item for event in by_kind["output_item.done"]] == last.output
    assert [event.item.id for event in by_kind["output_item.added"]] == [item.id for item in last.output]
    assert [event.output_index for event in by_kind["output_item.added"]] == [0, 1]
    assert {event.item_id for event in by_kind["output_text.delta"]} == {last.output[0].id}
    assert {event.item_id for event in by_kind["function_call_arguments.delta"]} == {last.output[1].id}
    assert [item.status for item in last.output] == ["completed", "completed"]
    assert [event.item.status for event in by_kind["output_item.added"]] == ["in_progress", "in_progress"]
    assert last.usage.input_tokens == len(engine_of(server).requests[-1].prompt_ids)


def test_events_are_named_as_their_type_and_end_with_the_response(server: Server) -> None:
    will_write(server, "ab")
    lines = server.post(PATH, {"input": "go", "stream": True}).text.split("\n\n")
    assert lines.pop() == ""
    pairs = [line.split("\ndata: ") for line in lines]
    assert [name for name, _ in pairs] == [f"event: {json.loads(data)['type']}" for _, data in pairs]
    assert pairs[-1][0] == "event: response.completed"


def test_cut_answer_is_incomplete(server: Server) -> None:
    for stream in (False, True):
        will_write(server, "abcabcabc")
        answer = ask(server, max_output_tokens=2, stream=stream)
        if stream:
            last = list(answer)[-1]
            assert last.type == "response.incomplete"
            answer = last.response
        assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
        assert (answer.output[0].status, answer.usage.output_tokens, answer.completed_at) == ("incomplete", 2, None)


def test_usage_and_what_was_asked_are_in_the_response(scripted: Server) -> None:
    asked: dict[str, Any] = {"metadata": {"a": "b"}, "temperature": 0.5, "user": "u", "truncation": "disabled"}
    answer = scripted.client().responses.create(
        model="m", input="hello", instructions="Be brief.", max_output_tokens=5, store=False, **asked
    )
    usage = answer.usage
    assert usage is not None
    assert usage.input_tokens == len("system: Be brief.\nuser: hello\nassistant:")
    assert (usage.output_tokens, usage.total_tokens) == (5, usage.input_tokens + 5)
    assert (usage.input_tokens_details.cached_tokens, usage.output_tokens_details.reasoning_tokens) == (3, 0)
    assert {key: getattr(answer, key) for key in asked} == asked
    assert (answer.model, answer.instructions, answer.max_output_tokens) == ("scripted", "Be brief.", 5)
    assert answer.model_extra is not None
    assert answer.model_extra["store"] is False
    assert answer.model_extra["sweq"]["cached_tokens"] == 3


ITEMS: list[Any] = [
    {"role": "developer", "content": [{"type": "input_text", "text": "Obey."}]},
    {"role": "user", "content": "first"},
    {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"},
    {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "So:", "annotations": []}]},
    {"type": "function_call", "call_id": "c1", "name": "bash", "arguments": '{"command": "ls"}'},
    {"type": "function_call", "call_id": "c2", "name": "bash", "arguments": ""},
    {"type": "function_call_output", "call_id": "c1", "output": "a.py"},
    {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "b.py"}]},
    {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": [{"type": "input_text", "text": "one"}, {"type": "input_text", "text": "two"}]},
]
MESSAGES: list[Any] = [
    {"role": "system", "content": "Be brief.\n\nObey."},
    {"role": "user", "content": "first"},
    {
        "role": "assistant",
        "content": "So:",
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "bash", "arguments": '{"command": "ls"}'}},
            {"id": "c2", "type": "function", "function": {"name": "bash", "arguments": "{}"}},
        ],
    },
    {"role": "tool", "tool_call_id": "c1", "content": "a.py"},
    {"role": "tool", "tool_call_id": "c2", "content": "b.py"},
    {"role": "assistant", "content": "No."},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "one\ntwo"},
]


def test_items_become_the_prompt_of_the_same_chat(server: Server) -> None:
    will_write(server, "a", "b")
    ask(server, ITEMS, instructions="Be brief.")
    items = prompt(server)
    functions = [
        {
            "type": "function",
            "function": {key: tool[key] for key in ("name", "description", "parameters") if key in tool},
        }
        for tool in TOOLS
    ]
    del functions[1]["function"]["parameters"]
    server.client().chat.completions.create(model="m", messages=MESSAGES, tools=functions)  # type: ignore[call-overload]
    assert items == prompt(server)
    assert "Be brief.\n\nObey." in items


def test_what_codex_sends_is_accepted_and_logged_once(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    body = {
        "model": "m",
        "instructions": "You are a coding agent.",
        "input": ITEMS[:2],
        "tools": [
            *TOOLS,
            {"type": "web_search", "external_web_access": True},
            {"type": "local_shell"},
            {
                "type": "custom",
                "name": "apply_patch",
                "format": {"type": "grammar", "syntax": "lark", "definition": ""},
            },
            {"type": "function"},
        ],
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "reasoning": {"effort": "medium", "summary": "auto"},
        "store": False,
        "stream": True,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "conversation-7",
        "text": {"verbosity": "low"},
        "service_tier": "auto",
        "client_metadata": {"a": "b"},
    }
    with caplog.at_level(logging.WARNING, logger="engine.serve.fields"):
        for _ in range(2):
            will_write(server, xml("bash") + xml("bash"))
            text = server.post(PATH, body).text
            assert text.count("event: response.function_call_arguments.done") == 1
            assert "event: response.completed" in text
    assert engine_of(server).requests[-1].session_id == "conversation-7"
    assert "apply_patch" not in prompt(server)
    logged = " ".join(record.getMessage() for record in caplog.records)
    for name in ("'web_search'", "'local_shell'", "'custom'", "without a name", "'client_metadata'"):
        assert logged.count(name) == 1


@pytest.mark.parametrize(
    ("fields", "headers", "session"),
    [
        ({"session_id": "b", "prompt_cache_key": "k"}, {"x-session-id": "h"}, "b"),
        ({"prompt_cache_key": "k"}, {"x-session-id": "h"}, "h"),
        ({"prompt_cache_key": "k"}, {}, "k"),
        ({"prompt_cache_key": ""}, {}, None),
    ],
)
def test_cache_key_names_the_conversation(
    server: Server, fields: dict[str, str], headers: dict[str, str], session: str | None
) -> None:
    will_write(server, "a")
    assert server.post(PATH, {"input": "go"} | fields, headers=headers).status_code == 200
    assert engine_of(server).requests[-1].session_id == session


@pytest.mark.parametrize(("choice", "names"), [("required", {"bash", "edit.file"}), ("bash", {"bash"})])
def test_forced_call(server: Server, choice: str, names: set[str]) -> None:
    will_write(server, xml("bash", command="ls").removeprefix("<tool_call>\n"))
    (item,) = ask(server, tool_choice=choice if choice == "required" else {"type": "function", "name": choice}).output
    assert (item.type, item.name, item.arguments) == ("function_call", "bash", '{"command": "ls"}')
    grammar = engine_of(server).requests[-1].params.grammar
    assert grammar is not None
    assert {name for name in ("bash", "edit.file") if f'"{name}"' in grammar.text} == names


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("form", "kind", "text"),
    [
        ({"type": "json_object"}, "json_object", ""),
        ({"type": "json_schema", "name": "n", "schema": SCHEMA, "strict": True}, "json_schema", json.dumps(SCHEMA)),
    ],
)
def test_text_format_is_a_grammar(server: Server, form: Any, kind: str, text: str) -> None:
    will_write(server, "{}")
    answer = ask(server, text={"format": form}, tools=[])
    grammar = engine_of(server).requests[-1].params.grammar
    assert grammar is not None
    assert (grammar.kind, grammar.text, grammar.param) == (kind, text, "text.format")
    assert answer.text.format.model_dump(by_alias=True, exclude_none=True) == form


def as_output(response: Any) -> list[Any]:
    return list(response.output)


def as_codex(response: Any) -> list[Any]:
    """Without ids and statuses, reasoning among them."""
    keys = ("type", "role", "content", "name", "arguments", "call_id")
    kept = [{key: value for key, value in item.model_dump().items() if key in keys} for item in response.output]
    return [{"type": "reasoning", "summary": [], "content": None, "encrypted_content": None}, *kept]


def as_easy_input(response: Any) -> list[Any]:
    """Messages as role and text, trimmed where there is one, and arguments written again."""
    items: list[Any] = []
    trim = sum(item.type == "message" for item in response.output) == 1
    for item in response.output:
        if item.type == "message":
            text = item.content[0].text
            items.append({"role": "assistant", "content": text.strip() if trim else text})
        else:
            compact = json.dumps(json.loads(item.arguments), separators=(",", ":"))
            items.append({"type": "function_call", "call_id": item.call_id, "name": item.name, "arguments": compact})
    return items


def as_references(response: Any) -> list[Any]:
    return [{"type": "item_reference", "id": response.output[0].id}, *({"id": item.id} for item in response.output[1:])]


def as_previous(response: Any) -> list[Any]:
    return []


ODD = " Loo:  \n<tool_call>\n<function=bash>\n<parameter=command>\nls ab\n\n</parameter></function></tool_call>"


@pytest.mark.parametrize("rest", ["", "\n" + xml("edit.file", n="1.50"), "\nand then\n" + xml("bash")])
@pytest.mark.parametrize("send_back", [as_output, as_codex, as_easy_input, as_references, as_previous])
@pytest.mark.parametrize("stream", [False, True])
def test_turn_that_comes_back_hits_the_cache_in_full(server: Server, rest: str, send_back: Any, stream: bool) -> None:
    assert server.session.service is not None
    tokenizer = server.session.service.tokenizer
    letters = [tokenizer.encode(letter)[0] for letter in "ab"]
    # Not what the tokenizer would make of "ab".
    generated = [*tokenizer.encode(ODD.split("ab")[0]), *letters, *tokenizer.encode(ODD.split("ab")[1] + rest)]
    will_write(server, generated, "done")
    items: list[Any] = [{"role": "user", "content": f"go {rest} {send_back.__name__} {stream}"}]
    response = ask(server, items, stream=stream)
    if stream:
        response = list(response)[-1].response
    first = len(engine_of(server).requests[-1].prompt_ids)
    calls = [item for item in response.output if item.type == "function_call"]
    results = [{"type": "function_call_output", "call_id": call.call_id, "output": "a.py"} for call in calls]
    if send_back is as_previous:
        answer = ask(server, results, previous_response_id=response.id)
    else:
        answer = ask(server, [*items, *send_back(response), *results])
    # All that was generated, and the turn's end, which both the model and the template wrote.
    assert answer.usage.input_tokens_details.cached_tokens == first + len(generated) + 1
    assert answer.model_extra["sweq"] == {
        "cached_tokens": first + len(generated) + 1,
        "cache_source": "device",
        "replayed_turns": 1,
        "replayed_tokens": len(generated),
        "tokenized_turns": 0,
    }


def test_conversation_of_three_by_previous_id(server: Server) -> None:
    will_write(server, "one", "two", "three")
    first = ask(server, "1", instructions="Only here.")
    second = ask(server, "2", previous_response_id=first.id)
    third = ask(server, "3", previous_response_id=second.id)
    assert (third.previous_response_id, third.model_extra["sweq"]["replayed_turns"]) == (second.id, 2)
    turns = [part.partition("<|im_end|>")[0] for part in prompt(server).split("<|im_start|>")]
    assert turns[-6:] == ["user\n1", "assistant\none", "user\n2", "assistant\ntwo", "user\n3", "assistant\n"]
    assert "Only here." not in prompt(server)


def test_kept_response_is_retrieved_and_deleted(server: Server) -> None:
    client = strict(server)
    will_write(server, "one", "two", "three")
    kept, loose, streamed = ask(server), ask(server, store=False), list(ask(server, stream=True))[-1].response
    assert client.responses.retrieve(kept.id) == kept
    assert client.responses.retrieve(streamed.id) == streamed
    deleted = httpx.delete(f"{server.url}{PATH}/{kept.id}")
    assert deleted.json() == {"id": kept.id, "object": "response", "deleted": True}
    for name in (kept.id, loose.id, "resp_x"):
        with pytest.raises(openai.NotFoundError, match=name):
            client.responses.retrieve(name)
        with pytest.raises(openai.NotFoundError, match=name):
            client.responses.delete(name)
        with pytest.raises(openai.NotFoundError) as caught:
            ask(server, previous_response_id=name)
        assert (caught.value.param, caught.value.code) == ("previous_response_id", "response_not_found")
    with pytest.raises(openai.NotFoundError) as caught:
        ask(server, [{"type": "item_reference", "id": kept.output[0].id}])
    assert (caught.value.param, caught.value.code) == ("input[0].id", "item_not_found")


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
def test_each_bad_field_is_a_400_that_names_it(any_server: Server, change: dict[str, Any], param: str) -> None:
    answer = any_server.post(PATH, {"input": "go", "tools": TOOLS} | change)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert param in error["message"]


def test_missing_input_and_stream_of_a_kept_response_are_400s(any_server: Server) -> None:
    assert any_server.post(PATH, {}).json()["error"]["param"] == "input"
    answer = httpx.get(f"{any_server.url}{PATH}/resp_1", params={"stream": "true"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "stream")


def test_refused_and_failed_requests(scripted: Server) -> None:
    for stream in (False, True):
        long = scripted.post(PATH, {"input": "x" * 300, "stream": stream})
        assert (long.status_code, long.json()["error"]["param"]) == (400, "input")
        assert long.json()["error"]["code"] == "context_length_exceeded"
        refused = scripted.post(PATH, {"input": "refuse", "stream": stream})
        assert (refused.status_code, "does not fit" in refused.json()["error"]["message"]) == (400, True)


def test_failure_in_the_middle_of_a_stream_is_an_event() -> None:
    with running_server(scripted_service, drain_seconds=60) as server:
        server.wait_until(lambda: server.session.state == "ready")
        engine: Any = server.session.service.engine  # type: ignore[union-attr]
        step, has_begun = engine.step, threading.Event()

        def fail_at_fourth() -> Any:
            if engine.steps == 3 and has_begun.wait(10):
                raise RuntimeError("boom")
            return step()

        engine.step = fail_at_fourth
        with strict(server).responses.create(model="m", input="go", stream=True) as stream:
            events = [next(stream)]
            has_begun.set()
            events += list(stream)
    assert [event.type for event in events][-2:] == ["response.output_item.done", "response.failed"]
    failed = events[-1].response  # type: ignore[union-attr]
    assert (failed.status, failed.error.code) == ("failed", "server_error")
    assert "boom" in failed.error.message
    assert failed.output[0].status == "incomplete"
