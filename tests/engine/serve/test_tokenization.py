from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serve_fixtures import Server, running_server, scripted_service
from token_script import SPECIAL, engine_of, script_service, will_write

from engine.text.tokenizer import Tokenizer

HELLO: list[Any] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "go"}]
TOOLS: list[Any] = [{"type": "function", "function": {"name": "bash", "description": "run"}}]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running_server(script_service) as running:
        running.wait_until(lambda: running.session.state == "ready")
        yield running


def tokenizer_of(server: Server) -> Tokenizer:
    assert server.session.service is not None
    return server.session.service.tokenizer


def tokenize(server: Server, **body: Any) -> dict[str, Any]:
    answer = server.post("/tokenize", body)
    assert answer.status_code == 200, answer.text
    result: dict[str, Any] = answer.json()
    return result


def test_prompt_gives_ids_count_and_strings(server: Server) -> None:
    answer = tokenize(server, model="m", prompt="<|im_start|>é ab", return_token_strs=True)
    assert answer["tokens"] == tokenizer_of(server).encode("<|im_start|>é ab")
    assert (answer["count"], answer["max_model_len"]) == (len(answer["tokens"]), 20000)
    assert answer["token_strs"] == ["<|im_start|>", "\ufffd", "\ufffd", " ", "ab"]
    assert tokenize(server, prompt="")["tokens"] == []
    assert tokenize(server, prompt="x")["token_strs"] is None


@settings(max_examples=40)
@given(st.lists(st.one_of(st.sampled_from([*SPECIAL, "ab"]), st.text(st.characters(codec="utf-8"), max_size=8))))
def test_text_with_special_tokens_comes_back(server: Server, pieces: list[str]) -> None:
    text = "".join(pieces)
    tokens = tokenize(server, prompt=text)["tokens"]
    assert server.post("/detokenize", {"tokens": tokens}).json() == {"prompt": text}


@pytest.mark.parametrize("tools", [None, TOOLS])
def test_messages_give_the_prompt_of_the_same_chat(server: Server, tools: Any) -> None:
    will_write(server, "fine")
    body = {"messages": HELLO, "tools": tools}
    assert server.post("/v1/chat/completions", body).status_code == 200
    prompt = list(engine_of(server).requests[-1].prompt_ids)
    assert tokenize(server, **body)["tokens"] == prompt
    begun = tokenize(server, **body, add_generation_prompt=False)["tokens"]
    assert prompt[: len(begun)] == begun
    assert tokenizer_of(server).decode(prompt[len(begun) :], special=True) == "<|im_start|>assistant\n"


def test_answer_in_the_history_counts_as_it_was_generated(server: Server) -> None:
    letters = [tokenizer_of(server).encode(letter)[0] for letter in "ab"]
    will_write(server, letters)
    server.post("/v1/chat/completions", {"messages": HELLO})
    first = len(engine_of(server).requests[-1].prompt_ids)
    history = [*HELLO, {"role": "assistant", "content": "ab"}]
    tokens = tokenize(server, messages=history, add_generation_prompt=True)["tokens"]
    assert tokens[first : first + 2] == letters


def test_begin_token_is_added_where_the_checkpoint_asks_for_it() -> None:
    def with_begin_token() -> Any:
        service = script_service("{{ messages[0].content }}")
        metadata = {"model": "gpt2", "pre": "gpt-2", "tokens": ["<s>", "a"], "token_type": [3, 1], "merges": []}
        metadata |= {"bos_token_id": 0, "add_bos_token": True}
        return replace(service, tokenizer=Tokenizer.from_gguf({f"tokenizer.ggml.{k}": v for k, v in metadata.items()}))

    with running_server(with_begin_token) as server:
        server.wait_until(lambda: server.session.state == "ready")
        assert tokenize(server, prompt="a")["tokens"] == [0, 1]
        assert tokenize(server, prompt="a", add_special_tokens=False)["tokens"] == [1]
        message = [{"role": "user", "content": "a"}]
        assert tokenize(server, messages=message)["tokens"] == [1]
        assert tokenize(server, messages=message, add_special_tokens=True)["tokens"] == [0, 1]
        assert server.post("/detokenize", {"tokens": [0, 1]}).json() == {"prompt": "<s>a"}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": HELLO}, "prompt"),
        ("/tokenize", {"prompt": 3}, "prompt"),
        ("/tokenize", {"prompt": ["a"]}, "prompt"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"messages": [{"role": "critic", "content": "x"}]}, "messages[0].role"),
        ("/tokenize", {"messages": HELLO, "tools": [{"type": "function"}]}, "tools[0].function.name"),
        ("/tokenize", {"prompt": "a", "add_special_tokens": 1}, "add_special_tokens"),
        ("/tokenize", {"messages": HELLO, "add_generation_prompt": "no"}, "add_generation_prompt"),
        ("/tokenize", {"prompt": "a", "return_token_strs": "no"}, "return_token_strs"),
        ("/tokenize", {"messages": HELLO, "continue_final_message": True}, "continue_final_message"),
        ("/tokenize", {"messages": HELLO, "chat_template": "x"}, "chat_template"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": "1"}, "tokens"),
        ("/detokenize", {"tokens": [1, "2"]}, "tokens[1]"),
        ("/detokenize", {"tokens": [True]}, "tokens[0]"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": [10**9]}, "tokens"),
    ],
)
def test_each_bad_field_is_a_400_that_names_it(server: Server, path: str, body: dict[str, Any], param: str) -> None:
    answer = server.post(path, body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert param in answer.json()["error"]["message"]


def test_keys_guard_these_routes_too() -> None:
    with running_server(scripted_service, api_keys=["key"]) as server:
        server.wait_until(lambda: server.session.state == "ready")
        bodies = {"/tokenize": {"prompt": "a"}, "/detokenize": {"tokens": [1]}, "/v1/responses": {"input": "a"}}
        for path, body in bodies.items():
            answer = server.post(path, body)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
            assert server.post(path, body, headers={"authorization": "Bearer key"}).status_code == 200
        assert httpx.get(f"{server.url}/v1/responses/x").status_code == 401
