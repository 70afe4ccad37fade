"""Replay and forced calls over the real engine: random weights write what no tokenizer would."""

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from serve_fixtures import Server, running_server
from token_script import TEMPLATES, chat_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from engine.config import EngineConfig
from engine.serve.opening import open_service
from engine.serve.service import Service
from engine.text.history import TurnHistory

BLOCK = 16
TOOLS: list[Any] = [{"type": "function", "function": {"name": name}} for name in ("bash", "edit.file")]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("talker")
    torch.manual_seed(3)
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=chat_tokenizer().vocab_size,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=2048,
            bos_token_id=None,
            eos_token_id=None,
        )
    )
    llama.save_pretrained(folder)
    chat_tokenizer()._backend.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text((TEMPLATES / "qwen3_coder.jinja").read_text())
    return folder


def opened(model: Path) -> Service:
    return open_service(str(model), "f32", EngineConfig(block_size=BLOCK, device="cpu"))


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[Server]:
    with running_server(lambda: opened(model)) as running:
        running.wait_until(lambda: running.session.state == "ready", 60)
        yield running


def talk(server: Server, turns: int) -> list[Any]:
    """The answers of a conversation in which each is sent back as the client got it."""
    messages: list[Any] = [{"role": "user", "content": "go"}]
    answers = []
    for turn in range(turns):
        answers.append(
            server.client().chat.completions.create(
                model="m", messages=messages, seed=turn, temperature=1.5, max_tokens=50, logit_bias={"257": -100}
            )
        )
        messages += [answers[-1].choices[0].message.model_dump(), {"role": "user", "content": "more"}]
    return answers


def test_every_turn_reads_all_before_it_from_the_cache(server: Server) -> None:
    answers = talk(server, 4)
    assert "\ufffd" in answers[0].choices[0].message.content
    for before, after in pairwise(answers):
        # The last generated token was never computed, and the tree holds whole blocks.
        known = before.usage.prompt_tokens + before.usage.completion_tokens - 1
        assert after.usage.prompt_tokens_details.cached_tokens >= known - known % BLOCK
    assert [answer.model_extra["sweq"]["replayed_turns"] for answer in answers] == [0, 1, 2, 3]


def test_without_replay_the_first_answer_ends_the_shared_prefix(model: Path) -> None:
    with running_server(lambda: replace(opened(model), history=TurnHistory(max_bytes=0))) as server:
        server.wait_until(lambda: server.session.state == "ready", 60)
        first, second = (answer.usage for answer in talk(server, 2))
    assert first.prompt_tokens - BLOCK < second.prompt_tokens_details.cached_tokens < first.total_tokens - BLOCK


def test_conversation_by_response_id_reads_all_before_it_from_the_cache(server: Server) -> None:
    responses: list[Any] = []
    for turn in range(3):
        before = responses[-1].id if responses else None
        body = {"model": "m", "input": "more", "previous_response_id": before, "max_output_tokens": 50}
        options = {"seed": turn, "logit_bias": {"257": -100}}
        responses.append(server.client().responses.create(**body, temperature=1.5, extra_body=options))
    for earlier, later in pairwise(responses):
        known = earlier.usage.total_tokens - 1
        assert later.usage.input_tokens_details.cached_tokens >= known - known % BLOCK
    assert [response.model_extra["sweq"]["replayed_turns"] for response in responses] == [0, 1, 2]


def test_text_format_is_followed_whatever_the_weights(server: Server) -> None:
    schema: dict[str, object] = {"type": "object", "properties": {}, "additionalProperties": False}
    answer = server.client().responses.create(
        model="m",
        input="go",
        text={"format": {"type": "json_schema", "name": "n", "schema": schema}},
        max_output_tokens=50,
    )
    assert json.loads(answer.output_text) == {}


@pytest.mark.parametrize(("choice", "names"), [("required", {"bash", "edit.file"}), ("bash", {"bash"})])
def test_forced_call_is_a_call_whatever_the_weights(server: Server, choice: str, names: set[str]) -> None:
    wanted: Any = choice if choice == "required" else {"type": "function", "function": {"name": choice}}
    for seed in range(3):
        answer = server.client().chat.completions.create(
            model="m",
            messages=[{"role": "user", "content": "go"}],
            tools=TOOLS,
            tool_choice=wanted,
            seed=seed,
            max_tokens=40,
        )
        (call,) = answer.choices[0].message.tool_calls or []
        assert call.type == "function"
        assert call.function.name in names


def answer_of(server: Server, messages: list[Any], **fields: Any) -> dict[str, Any]:
    body = {"messages": messages, "max_tokens": 50, "temperature": 1.5, "logit_bias": {"257": -100}} | fields
    answer: dict[str, Any] = server.post("/v1/messages", body).json()
    return answer


def test_anthropic_turns_read_all_before_them_from_the_cache(server: Server) -> None:
    messages: list[Any] = [{"role": "user", "content": "Go on."}]
    known = 0
    for turn in range(4):
        answer = answer_of(server, messages, seed=turn)
        usage = answer["usage"]
        assert answer["sweq"]["replayed_turns"] == turn
        assert usage["cache_read_input_tokens"] >= known - known % BLOCK
        known = usage["input_tokens"] + usage["cache_read_input_tokens"] + usage["output_tokens"] - 1
        messages += [{"role": "assistant", "content": answer["content"]}, {"role": "user", "content": "more"}]


def test_the_engine_tells_which_stop_sequence_it_met(server: Server) -> None:
    asked: list[Any] = [{"role": "user", "content": "Stop."}]
    whole = answer_of(server, asked, seed=1)["content"][0]["text"]
    stop = next(char for char in whole[5:] if char != "\ufffd")
    answer = answer_of(server, asked, seed=1, stop_sequences=["never met", stop])
    assert (answer["stop_reason"], answer["stop_sequence"]) == ("stop_sequence", stop)
    assert answer["content"][0]["text"] == whole[: whole.index(stop)]
