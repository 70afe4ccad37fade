"""Forced calls under random logits: whatever the weights say, the arguments validate; jsonschema is the oracle."""

import json
from random import Random
from typing import Any

import jsonschema
import pytest
import torch
from token_script import TEMPLATES, chat_tokenizer

from engine.core.grammar import GrammarCompiler
from engine.errors import RequestError
from engine.serve.call_grammar import call_grammar
from engine.text.call_parser import CallEnd, CallStart
from engine.text.tool_calls import ToolCallStream, find_syntax

TOKENIZER = chat_tokenizer()
COMPILER = GrammarCompiler(TOKENIZER, TOKENIZER.vocab_size)
RUN = {
    "type": "object",
    "properties": {
        "command": {"type": "string"},
        "count": {"type": "integer", "minimum": 1, "maximum": 300},
        "ratio": {"type": "number", "minimum": 0, "maximum": 2},
        "deep": {"type": "boolean"},
        "mode": {"type": "string", "enum": ["read", "write"]},
        "short": {"type": "string", "minLength": 2, "maxLength": 4},
        "who": {"anyOf": [{"enum": ["me", "null"]}, {"type": "null"}]},
        "level": {"$ref": "#/$defs/level"},
        "lines": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "maxItems": 3},
        "edit": {"type": "object", "properties": {"old": {"type": "boolean"}, "new": {}}, "required": ["old"]},
        "either": {"type": ["integer", "null"], "maximum": 99, "minimum": 0},
    },
    "required": ["command", "count", "short", "undeclared"],
    "$defs": {"level": {"enum": [1, 2, 3]}},
}
SCHEMAS: dict[str, Any] = {
    "run": ("tools[0].function.parameters", RUN),
    "none": ("", {"properties": {}}),
    "any": ("", {}),
}
END = "\n</parameter>\n"


def write(form: Any, schemas: dict[str, Any], seed: int) -> str:
    """A call of random letters that the grammar lets follow; what ends a value comes more often."""
    matcher = COMPILER.matcher(call_grammar(form, schemas))
    random, text = Random(seed), ""
    while not matcher.is_finished:
        assert len(text) < 5000
        logits = torch.zeros(TOKENIZER.vocab_size)
        matcher.apply(logits)
        allowed = {TOKENIZER.decode([token]): token for token in (logits == 0).nonzero().flatten().tolist()}
        known = next((n for n in range(len(END) - 1, 0, -1) if text.endswith(END[:n])), 0)
        wanted = END[known] if random.random() < (0.9 if known else 0.1) else random.choice('"}],\t\n')
        # xgrammar takes bytes that are no character for one, the decoder for several; no model knows them.
        letter = wanted if wanted in allowed else random.choice([each for each in allowed if "\ufffd" not in each])
        matcher.accept([allowed[letter]])
        text += letter
    return text


def read(form: Any, text: str) -> tuple[str, Any]:
    syntax = find_syntax((TEMPLATES / f"{form}.jinja").read_text(), TOKENIZER)
    tools = [{"function": {"name": name, "parameters": schema}} for name, (_, schema) in SCHEMAS.items()]
    stream = ToolCallStream(syntax, TOKENIZER, tools)
    answer = "<tool_call>\n" + text
    events = stream.push(TOKENIZER.encode(answer), answer) + stream.finish()
    assert isinstance(events[0], CallStart)
    assert events[-1] == CallEnd(0)
    return events[0].name, json.loads("".join(event.fragment for event in events[1:-1]))  # type: ignore[union-attr]


@pytest.mark.parametrize("form", ["qwen3_coder", "hermes"])
def test_whatever_the_weights_say_the_arguments_validate(form: str) -> None:
    seen = set[str]()
    for seed in range(30):
        text = write(form, SCHEMAS if seed % 3 == 0 else {"run": SCHEMAS["run"]}, seed)
        name, arguments = read(form, text)
        jsonschema.validate(arguments, SCHEMAS[name][1])
        seen |= {name, *arguments}
    assert seen >= {"run", *RUN["properties"], "undeclared"}  # type: ignore[misc]


TEXT = {"type": "string"}


@pytest.mark.parametrize(
    ("forms", "schema", "reason"),
    [
        ("qh", {"type": "array"}, '"type": "object"'),
        ("qh", {"properties": {"a": {"not": TEXT}}}, "not cannot be enforced"),
        ("qh", {"properties": {"a": {"type": "object", "required": ["b"]}}}, "required 'b'"),
        ("qh", {"required": "a"}, "required must be a list"),
        ("q", {"properties": {"a": TEXT | {"pattern": "^a+$"}}}, "pattern cannot"),
        ("q", {"properties": {"a": TEXT | {"minLength": 9999}}}, "minLength"),
        ("q", {"properties": {"a": {"type": "array", "items": TEXT | {"maxLength": 3}}}}, "maxLength inside of JSON"),
        ("q", {"properties": {"a>b": TEXT}}, "such a name"),
        ("q", {"properties": {"a": {"enum": ["</parameter>", 1]}}}, "an enumeration"),
        ("q", {"additionalProperties": {"type": "integer"}}, "additionalProperties"),
        ("q", {"maxProperties": 2}, "maxProperties over all arguments"),
    ],
)
def test_what_cannot_be_enforced_is_refused_by_place(forms: str, schema: dict[str, Any], reason: str) -> None:
    for form in ("qwen3_coder", "hermes"):
        if form[0] in forms:
            with pytest.raises(RequestError, match=reason) as refused:
                call_grammar(form, {"f": ("tools[3].function.parameters", schema)})  # type: ignore[arg-type]
            assert refused.value.param == "tools[3].function.parameters"
        else:
            COMPILER.compile(call_grammar(form, {"f": ("", schema)}))  # type: ignore[arg-type]
