"""What the sampler can do, asked for over HTTP with the openai client, answered by a tiny random llama."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jsonschema
import pytest
import torch
from serve_fixtures import TEMPLATE, Server, byte_tokenizer, running_server

from engine.config import EngineConfig, ModelConfig
from engine.core.engine import Engine
from engine.core.request import Grammar, Request, SamplingParams, StepOutput
from engine.quant.formats import pack
from engine.serve.formats import one_of
from engine.serve.service import Service
from engine.text.chat import ChatTemplate
from engine.weights.layout import tensor_specs
from engine.weights.loader import Checkpoint

HELLO: list[Any] = [{"role": "user", "content": "hello"}]
SCHEMA = {
    "type": "object",
    "properties": {
        "ok": {"type": "boolean"},
        "word": {"enum": ["cat", "dög"]},
        "n": {"type": "integer", "maximum": 9, "minimum": 0},
    },
    "required": ["ok", "word", "n"],
    "additionalProperties": False,
}
BLANKS = {str(token): -100 for text in " \n\r" for token in byte_tokenizer().encode(text)}


def tiny_service() -> Service:
    config = ModelConfig(
        architecture="llama",
        vocab_size=256,
        hidden_size=64,
        intermediate_size=96,
        num_layers=2,
        layer_types=("full_attention",) * 2,
        num_attention_heads=4,
        num_kv_heads=2,
        head_dim=16,
        rotary_dim=16,
        rope_theta=10_000.0,
        rms_norm_eps=1e-5,
        max_position=512,
        tie_word_embeddings=False,
    )
    torch.manual_seed(3)
    values = {spec.name: torch.randn(spec.shape) * 0.3 for spec in tensor_specs(config)}
    weights = {name: pack(value, "f32") if value.ndim == 2 else 1 + value for name, value in values.items()}
    tokenizer = byte_tokenizer()
    engine = Engine(Checkpoint(config, weights, tokenizer, None, {"quant": "f32"}), EngineConfig(num_blocks=200))
    return Service(
        engine=engine,
        tokenizer=tokenizer,
        template=ChatTemplate(TEMPLATE, {}),
        name="tiny",
        model="tiny",
        max_context=512,
        identity={},
    )


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running_server(tiny_service) as running:
        running.wait_until(lambda: running.session.state == "ready")
        yield running


def chat(server: Server, **options: Any) -> Any:
    options = {"model": "tiny", "messages": HELLO, "max_tokens": 60, "seed": 5} | options
    return server.client().chat.completions.create(**options)


def complete(server: Server, **options: Any) -> Any:
    options = {"model": "tiny", "prompt": "hello there, you all", "max_tokens": 20, "seed": 5} | options
    return server.client().completions.create(**options)


def test_n_choices_plain_streamed_and_seeded(server: Server) -> None:
    plain = complete(server, n=3, logprobs=1)
    assert [choice.index for choice in plain.choices] == [0, 1, 2]
    chunks = list(complete(server, n=3, logprobs=1, stream=True, stream_options={"include_usage": True}))
    for choice in plain.choices:
        parts = [c for chunk in chunks for c in chunk.choices if c.index == choice.index]
        assert "".join(part.text for part in parts) == choice.text
        assert [part.finish_reason for part in parts if part.finish_reason] == ["length"]
        offsets = [offset for part in parts if part.logprobs for offset in part.logprobs.text_offset]
        assert offsets == choice.logprobs.text_offset
        assert complete(server, seed=5 + choice.index).choices[0].text == choice.text
    assert (plain.usage.prompt_tokens, plain.usage.completion_tokens) == (20, 60)
    assert chunks[-1].usage.completion_tokens == 60
    assert len({choice.text for choice in plain.choices}) == 3


def test_n_choices_in_a_chat_each_begin_with_the_role(server: Server) -> None:
    plain = chat(server, n=2)
    chunks = list(chat(server, n=2, stream=True))
    for index in range(2):
        deltas = [c.delta for chunk in chunks for c in chunk.choices if c.index == index]
        assert [delta.role for delta in deltas if delta.role] == ["assistant"]
        assert "".join(delta.content or "" for delta in deltas) == plain.choices[index].message.content


def test_echo_begins_each_choice_with_the_prompt_and_its_logprobs(server: Server) -> None:
    plain = complete(server, n=2, logprobs=2)
    echoed = complete(server, n=2, logprobs=2, echo=True)
    chunks = list(complete(server, n=2, logprobs=2, echo=True, stream=True))
    prompt = "hello there, you all"
    for before, choice in zip(plain.choices, echoed.choices, strict=True):
        assert choice.text == prompt + before.text
        lists = choice.logprobs
        assert lists.tokens == [*prompt, *before.logprobs.tokens]
        assert lists.token_logprobs[0] is None
        assert all(value < 0 for value in lists.token_logprobs[1:])
        assert lists.text_offset[:21] == list(range(21))
        parts = [c for chunk in chunks for c in chunk.choices if c.index == choice.index]
        assert "".join(part.text for part in parts) == choice.text
        assert [t for part in parts if part.logprobs for t in part.logprobs.token_logprobs] == lists.token_logprobs
    assert complete(server, echo=True).choices[0].text == prompt + plain.choices[0].text


def test_a_disconnect_ends_every_choice(server: Server) -> None:
    with server.client().completions.create(model="m", prompt="long", max_tokens=400, n=4, stream=True) as chunks:
        next(iter(chunks))
    server.wait_until(lambda: server.session.stats["running"] == 0)
    assert server.session.stats["blocks_used"] == 0


def test_one_failed_choice_fails_the_request_and_frees_the_others(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert server.session.service is not None
    engine = server.session.service.engine
    step = engine.step

    def fail_second() -> list[StepOutput]:
        return [replace(o, finish_reason="error", error="boom") if o.index == 1 else o for o in step()]

    monkeypatch.setattr(engine, "step", fail_second)
    answer = server.post("/v1/completions", {"prompt": "x", "n": 3, "max_tokens": 300})
    assert (answer.status_code, answer.json()["error"]["message"]) == (500, "boom")
    server.wait_until(lambda: server.session.stats["running"] == 0)


def test_penalties_and_bias_change_the_text(server: Server) -> None:
    few = {str(token): 100 for token in byte_tokenizer().encode("xyz")}
    options: dict[str, Any] = {"temperature": 0, "logit_bias": few, "max_tokens": 60}
    free = complete(server, **options).choices[0].text
    assert set(free) <= set("xyz")
    even = complete(server, **options, frequency_penalty=2).choices[0].text
    assert max(map(even.count, "xyz")) < max(map(free.count, "xyz"))
    assert complete(server, **options, presence_penalty=-2).choices[0].text != even
    loose, bent = (complete(server, temperature=0, extra_body={"repetition_penalty": p}) for p in (1.0, 0.1))
    assert len(set(bent.choices[0].text)) < len(set(loose.choices[0].text))


@pytest.mark.parametrize("strict", [True, False, None])
def test_json_schema_is_followed(server: Server, strict: bool | None) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": strict}}
    for seed in range(4):
        answer = chat(server, response_format=form, seed=seed, logit_bias=BLANKS)
        assert answer.choices[0].finish_reason == "stop"
        jsonschema.validate(json.loads(answer.choices[0].message.content), SCHEMA)


def test_streamed_structured_output_equals_plain(server: Server) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
    options = {"response_format": form, "logit_bias": BLANKS, "n": 2}
    plain, chunks = chat(server, **options), list(chat(server, stream=True, **options))
    for choice in plain.choices:
        parts = [c.delta.content or "" for chunk in chunks for c in chunk.choices if c.index == choice.index]
        assert "".join(parts) == choice.message.content


def test_json_object_begins_an_object(server: Server) -> None:
    """A random model seldom ends its object by itself: what is there must be how one begins."""
    text = chat(server, response_format={"type": "json_object"}, logit_bias=BLANKS).choices[0].message.content
    assert text.startswith("{")
    assert chat(server, response_format={"type": "text"}).choices[0].message.content[0] != "{"


@pytest.mark.parametrize(
    ("form", "pattern"),
    [
        ({"regex": r"\d{3}-[xyz]{2}"}, r"\d{3}-[xyz]{2}"),
        ({"choice": ["yes", 'no, "never"\n', "🙂"]}, r'yes|no, "never"\n|🙂'),
        ({"grammar": 'root ::= ("a" | "b") root | "."'}, r"[ab]*\.?"),
        ({"json": json.dumps({"type": "boolean"})}, "true|false"),
        ({"json": {"const": "ab"}}, '"ab"'),
        ({"json_object": True}, r"\{.*"),
    ],
)
def test_structured_outputs_are_followed(server: Server, form: dict[str, Any], pattern: str) -> None:
    for seed in range(3):
        text = complete(server, extra_body={"structured_outputs": form}, seed=seed).choices[0].text
        assert re.fullmatch(pattern, text, re.ASCII | re.DOTALL)


@pytest.mark.parametrize(
    ("body", "param", "reason"),
    [
        ({"structured_outputs": {"regex": "("}}, "structured_outputs.regex", "not closed"),
        ({"structured_outputs": {"grammar": "x"}}, "structured_outputs.grammar", "does not compile"),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs.json", "not valid JSON"),
        ({"logit_bias": {"256": 1}}, "logit_bias", "token id 256"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"not": {}}}}},
            "response_format",
            "not cannot be enforced",
        ),
    ],
)
def test_what_cannot_be_followed_is_a_400(server: Server, body: dict[str, Any], param: str, reason: str) -> None:
    answer = server.post("/v1/completions", {"prompt": "x", "max_tokens": 2} | body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert reason in answer.json()["error"]["message"]


def test_choices_of_text_are_escaped() -> None:
    texts = ['a"b\\c', "é🙂\u2028", "\n\t\x07]|[", "-\\n"]
    service = tiny_service()
    for text in texts:
        params = SamplingParams(max_tokens=30, temperature=0.0, grammar=Grammar("ebnf", one_of([text])))
        service.engine.add(Request(text, (1,), params))
    found = dict.fromkeys(texts, "")
    while service.engine.has_work:
        for output in service.engine.step():
            found[output.request_id] += output.text
    assert found == {text: text for text in texts}
