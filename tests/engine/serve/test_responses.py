"""`/v1/responses` as the openai library and Codex see it, over an engine that writes given tokens."""

import json
import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from responses_client import PATH, TOOLS, ask, prompt, strict
from serve_fixtures import Server, running_server, scripted_service
from token_script import engine_of, script_service, will_write, xml

CODE = 'if a < b and x["é"]:\n\treturn "</div>"\n'


@pytest.fixture(scope="module", params=[1, 7])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with running_server(lambda: script_service(stride=request.param)) as running:
        running.wait_until(lambda: running.session.state == "ready")
        yield running


def without_ids(output: list[Any]) -> list[dict[str, Any]]:
    return [{k: v for k, v in item.model_dump().items() if k not in ("id", "call_id")} for item in output]


def as_asked(response: Any) -> dict[str, Any]:
    """What is the same in every answer to the same request."""
    dumped: dict[str, Any] = response.model_dump(
        exclude={"id", "created_at", "completed_at", "output", "usage", "sweq"}
    )
    return dumped


def test_plain_and_streamed_responses_agree(server: Server) -> None:
    answer = "I look.\n\n" + xml("bash", command=CODE, n="2") + "\n" + xml("edit.file", any="1") + "\n"
    will_write(server, answer, answer)
    plain, events = ask(server), list(ask(server, stream=True))
    streamed = events[-1].response
    assert [item.type for item in plain.output] == ["message", "function_call", "function_call"]
    assert [json.loads(item.arguments) for item in plain.output[1:]] == [{"command": CODE, "n": 2}, {"any": "1"}]
    assert (plain.status, plain.error, plain.incomplete_details, plain.object) == ("completed", None, None, "response")
    assert as_asked(plain) == as_asked(streamed)
    assert without_ids(plain.output) == without_ids(streamed.output)
    assert len({item.id for item in [*plain.output, *streamed.output]}) == 6
    assert [event.sequence_number for event in events] == list(range(len(events)))


def test_library_puts_a_stream_together(server: Server) -> None:
    will_write(server, "I look.\n\n" + xml("bash", command=CODE))
    with strict(server).responses.stream(model="m", input="go", tools=TOOLS) as stream:
        final = stream.get_final_response()
    assert final.output_text == "I look."
    assert [json.loads(item.arguments) for item in final.output if item.type == "function_call"] == [{"command": CODE}]


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


def test_what_codex_sends_is_accepted_and_logged_once(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    body = {
        "model": "m",
        "instructions": "You are a coding agent.",
        "input": [{"role": "developer", "content": "Obey."}, {"role": "user", "content": "go"}],
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
    assert {name for name in ("bash", "edit.file") if name in grammar.text} == names


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
