"""What Anthropic's forms become in the chat form."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import RequestError
from engine.serve.anthropic.prompt import chat_messages, chat_tool_choice, chat_tools
from engine.text.messages import normalize

TOOL = {"name": "bash", "description": "run", "input_schema": {"type": "object"}}


def text(value: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": value, **more}


def user(*blocks: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(blocks)}


def use(name: str, **arguments: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": "toolu_1", "name": name, "input": arguments}


def result(content: Any, **more: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": "toolu_1", "content": content, **more}


def said(system: Any, *messages: Any) -> list[tuple[str, str]]:
    return [(turn["role"], turn["content"]) for turn in chat_messages(system, messages)]


def test_system_text_stands_first_whatever_its_form() -> None:
    cached = {"type": "ephemeral"}
    for system in ("a\n\nb", [text("a", cache_control=cached), text("b")], [text("a"), text(""), text("b")]):
        assert said(system, user(text("go"))) == [("system", "a\n\nb"), ("user", "go")]
    inline = {"role": "system", "content": "b"}
    assert said("a", inline, user(text("go")), inline) == [("system", "a\n\nb"), ("user", "go"), ("system", "b")]
    assert said(None, {"role": "user", "content": "go"}) == [("user", "go")]


def test_billing_header_does_not_reach_the_prompt() -> None:
    header = "x-anthropic-billing-header: cc_version=2.1.100.7b4; cc_entrypoint=cli; cch={};"
    prompts = [
        said(system, user(text("go")))
        for cch in ("eb6c6", "01234")
        for system in ([text(header.format(cch)), text("You help.")], header.format(cch) + "\nYou help.")
    ]
    assert prompts == [[("system", "You help."), ("user", "go")]] * 4


def test_results_and_text_of_one_user_turn() -> None:
    turns = chat_messages(
        None,
        [
            user(text("<reminder>"), text("go", cache_control={"type": "ephemeral"})),
            {"role": "assistant", "content": [text("On"), use("bash", n=1), text("e"), use("bash")]},
            user(result("a"), result([text("b"), text("c")], is_error=True), result(None), text("now")),
            user(text("then")),
        ],
    )
    assert [(turn["role"], turn["content"]) for turn in turns] == [
        ("user", "<reminder>\ngo"),
        ("assistant", "One"),
        ("tool", "a"),
        ("tool", "Error: b\nc"),
        ("tool", ""),
        ("user", "now\nthen"),
    ]
    assert [call["function"] for call in turns[1]["tool_calls"]] == [
        {"name": "bash", "arguments": {"n": 1}},
        {"name": "bash", "arguments": {}},
    ]
    assert turns[2]["tool_call_id"] == "toolu_1"


def test_thinking_is_left_out_and_empty_text_kept_silent() -> None:
    thought = {"type": "thinking", "thinking": "hm", "signature": "s"}
    hidden = {"type": "redacted_thinking", "data": "x"}
    answer = {"role": "assistant", "content": [thought, hidden, text(""), use("bash")]}
    turns = chat_messages(None, [user(text("go")), answer, user(result("a"), text(""))])
    assert [turn["content"] for turn in turns] == ["go", "", "a", ""]
    assert said(None, user()) == [("user", "")]


def test_an_answer_split_over_messages_is_one_turn() -> None:
    halves = [{"role": "assistant", "content": [text("Look.")]}, {"role": "assistant", "content": [use("bash")]}]
    whole = {"role": "assistant", "content": [text("Look."), use("bash")]}
    assert chat_messages(None, halves) == chat_messages(None, [whole])


def test_tools_carry_nothing_but_what_a_model_is_told() -> None:
    extra = {"cache_control": {"type": "ephemeral"}, "strict": True, "type": "custom"}
    function = {"name": "bash", "description": "run", "parameters": {"type": "object"}}
    assert chat_tools([TOOL | extra]) == [{"type": "function", "function": function}]
    assert chat_tools(None) == []


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, (None, None)),
        ({"type": "auto"}, ("auto", None)),
        ({"type": "any", "disable_parallel_tool_use": True}, ("required", False)),
        ({"type": "none", "disable_parallel_tool_use": False}, ("none", None)),
        ({"type": "tool", "name": "bash"}, ({"type": "function", "function": {"name": "bash"}}, None)),
    ],
)
def test_tool_choice(choice: Any, expected: Any) -> None:
    assert chat_tool_choice(choice, chat_tools([TOOL])) == expected


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "tool", "content": "x"}, ".role"),
        ({"role": "user"}, ".content"),
        ({"role": "user", "content": 3}, ".content"),
        (user("x"), ".content[0]"),
        (user(text("a"), {"text": "b"}), ".content[1]"),
        (user({"type": "text"}), ".content[0].text"),
        (user({"type": "image", "source": {}}), ".content[0]"),
        (user(text("a"), {"type": "document", "source": {}}), ".content[1]"),
        (user(use("bash")), ".content[0]"),
        (user(result([{"type": "image"}])), ".content[0].content[0]"),
        (user(result("x", is_error="no")), ".content[0].is_error"),
        (user({"type": "tool_result"}), ".content[0].tool_use_id"),
        ({"role": "assistant", "content": [{"type": "server_tool_use"}]}, ".content[0]"),
        ({"role": "assistant", "content": [use("bash") | {"id": 1}]}, ".content[0].id"),
        ({"role": "assistant", "content": [use("bash") | {"name": None}]}, ".content[0].name"),
        ({"role": "assistant", "content": [use("bash") | {"input": "{}"}]}, ".content[0].input"),
    ],
)
def test_what_has_no_chat_form_is_refused_by_place(message: Any, param: str) -> None:
    with pytest.raises(RequestError) as caught:
        chat_messages(None, [user(text("go")), message])
    assert caught.value.param == f"messages[1]{param}"
    assert str(caught.value).startswith(f"messages[1]{param}: ")


@pytest.mark.parametrize("kind", ["image", "document"])
def test_refusal_names_the_kind_of_block(kind: str) -> None:
    with pytest.raises(RequestError, match=f"'{kind}'"):
        chat_messages(None, [user({"type": kind})])


KEYS = ["type", "text", "role", "content", "id", "name", "input", "tool_use_id", "is_error"]
WORDS = ["text", "tool_use", "tool_result", "thinking", "image", ""]
LEAVES = st.none() | st.booleans() | st.integers() | st.sampled_from(WORDS)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner), max_leaves=8
)
BLOCKS = st.sampled_from([text("a"), text(""), use("bash"), result("a"), result([text("b")])]) | VALUES
CONTENTS = st.text(max_size=3) | st.lists(BLOCKS, max_size=3)
MESSAGES = st.builds(dict, role=st.sampled_from(["user", "assistant", "system", "tool"]), content=CONTENTS)


@given(system=st.none() | CONTENTS, messages=st.lists(MESSAGES, max_size=4))
def test_any_json_becomes_chat_messages_or_is_refused(system: Any, messages: Any) -> None:
    try:
        turns = chat_messages(system, messages)
    except RequestError:
        return
    assert normalize(turns) == turns
    assert all(one["role"] != other["role"] or one["role"] == "tool" for one, other in pairwise(turns))
