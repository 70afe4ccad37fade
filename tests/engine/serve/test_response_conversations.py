"""Conversations over `/v1/responses`: items as messages, turns that come back, responses that are kept."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from responses_client import PATH, TOOLS, ask, prompt, strict
from serve_fixtures import Server, running_server
from token_script import engine_of, script_service, will_write, xml


@pytest.fixture(scope="module", params=[1, 7])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with running_server(lambda: script_service(stride=request.param)) as running:
        running.wait_until(lambda: running.session.state == "ready")
        yield running


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
