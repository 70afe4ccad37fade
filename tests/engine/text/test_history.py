"""Own-token replay: what a client may change without losing the generated ids, and what it may not."""

import json
from pathlib import Path
from typing import Any

import pytest

from engine.text.chat import ChatTemplate
from engine.text.history import ENTRY_BYTES, Prompt, TurnHistory, build_prompt
from engine.text.tokenizer import Tokenizer

SOURCE = (Path(__file__).parents[1] / "templates" / "qwen3_coder.jinja").read_text()
TEMPLATE = ChatTemplate(SOURCE, {})
PRINTABLE = [chr(b) for b in [*range(33, 127), *range(161, 173), *range(174, 256)]]
SPECIAL = ["<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>"]
# "ab" is a token, so that `a` `b` generated one by one differ from the same text tokenized.
TOKENIZER = Tokenizer.from_gguf(
    {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [*PRINTABLE, *[chr(256 + n) for n in range(256 - len(PRINTABLE))], *SPECIAL, "ab"],
        "tokenizer.ggml.token_type": [*[1] * 256, 3, 3, 4, 4, 1],
        "tokenizer.ggml.merges": ["a b"],
    }
)
A, B = (TOKENIZER.encode(letter)[0] for letter in "ab")
USER = {"role": "user", "content": "go"}
ARGUMENTS = {"command": "ls", "n": 1.0, "deep": {"x": [2.0, None], "y": True}}
CALL = {"id": "c1", "type": "function", "function": {"name": "bash", "arguments": json.dumps(ARGUMENTS)}}
ANSWER = {"role": "assistant", "content": "Look: ab", "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "a.py"}
# What the model wrote: other white space and other token boundaries than the template and tokenizer would give.
GENERATED = [
    *TOKENIZER.encode("Look: "),
    *[A, B],
    *TOKENIZER.encode("\n<tool_call>\n<function=bash>\n<parameter=command>\nls\n</parameter><parameter=n>\n1.0\n"),
    *TOKENIZER.encode(
        '</parameter>\n<parameter=deep>\n{"x":[2.0,null],"y":true}\n</parameter>\n</function>\n</tool_call>'
    ),
]


def first_prompt(user: dict[str, Any] = USER) -> list[int]:
    return build_prompt(TEMPLATE, TOKENIZER, TurnHistory(), [user]).ids


def remembered() -> TurnHistory:
    history = TurnHistory()
    history.remember(ANSWER, GENERATED, first_prompt())
    return history


def second_prompt(history: TurnHistory, turn: dict[str, Any]) -> Prompt:
    return build_prompt(TEMPLATE, TOKENIZER, history, [USER, turn, RESULT])


def with_arguments(arguments: Any) -> dict[str, Any]:
    return ANSWER | {"tool_calls": [{"function": {"name": "bash", "arguments": arguments}}]}


@pytest.mark.parametrize(
    "turn",
    [
        ANSWER,
        ANSWER | {"content": "\n Look: ab\n\n"},
        ANSWER | {"content": [{"type": "text", "text": "Look: ab"}]},
        ANSWER
        | {"refusal": None, "annotations": [], "audio": None, "function_call": None, "provider_specific_fields": {}},
        ANSWER | {"reasoning_content": None},
        with_arguments(ARGUMENTS),
        with_arguments(json.dumps(ARGUMENTS, indent=2)),
        with_arguments('{"command":"ls","n":1,"deep":{"x":[2,null],"y":true}}'),
        with_arguments('{"deep":{"y":true,"x":[2,null]},"n":1,"command":"ls"}'),
        with_arguments('{"command":"\\u006cs","n":1e0,"deep":{"x":[2,null],"y":true}}'),
    ],
)
def test_turn_comes_back_token_for_token(turn: dict[str, Any]) -> None:
    prompt = second_prompt(remembered(), turn)
    assert prompt.ids[: len(first_prompt()) + len(GENERATED)] == first_prompt() + GENERATED
    behind = "<|im_end|>\n<|im_start|>user\n<tool_response>\na.py\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    assert prompt.ids[len(first_prompt()) + len(GENERATED) :] == TOKENIZER.encode(behind)
    assert (prompt.replayed_turns, prompt.replayed_tokens, prompt.tokenized_turns) == (1, len(GENERATED), 0)


@pytest.mark.parametrize(
    "turn",
    [
        ANSWER | {"content": "Look:  ab"},
        ANSWER | {"content": None},
        ANSWER | {"tool_calls": []},
        ANSWER | {"tool_calls": [CALL, CALL]},
        with_arguments({**ARGUMENTS, "command": "ls "}),
        with_arguments({**ARGUMENTS, "n": 2}),
        with_arguments({**ARGUMENTS, "deep": {"x": [2.0, None], "y": 1}}),
        {**with_arguments(ARGUMENTS), "role": "user"},
    ],
)
def test_edited_turn_is_tokenized_anew(turn: dict[str, Any]) -> None:
    prompt = second_prompt(remembered(), turn)
    assert prompt.ids == second_prompt(TurnHistory(), turn).ids
    assert (prompt.replayed_turns, prompt.tokenized_turns) == (0, int(turn["role"] == "assistant"))


@pytest.mark.parametrize("content", [None, "", "absent", []])
def test_turn_without_text_comes_back_in_every_form(content: Any) -> None:
    history = TurnHistory()
    ids = GENERATED[8:]
    history.remember({"role": "assistant", "content": None, "tool_calls": [CALL]}, ids, first_prompt())
    turn = {key: value for key, value in (ANSWER | {"content": content}).items() if value != "absent"}
    assert second_prompt(history, turn).replayed_turns == 1


def test_ids_that_followed_the_same_prompt_are_preferred() -> None:
    history = TurnHistory()
    other = {"role": "user", "content": "other"}
    answer = {"role": "assistant", "content": "ab"}
    history.remember(answer, [A, B], first_prompt())
    history.remember(answer, TOKENIZER.encode("ab"), first_prompt(other))
    for user, ids in (
        (USER, [A, B]),
        (other, TOKENIZER.encode("ab")),
        ({**USER, "content": "new"}, TOKENIZER.encode("ab")),
    ):
        found = build_prompt(TEMPLATE, TOKENIZER, history, [user, answer, USER]).ids
        assert found[: len(first_prompt(user)) + len(ids)] == first_prompt(user) + ids


def test_whole_conversation_only_grows() -> None:
    history, messages = TurnHistory(), [USER]
    for number in range(5):
        prompt = build_prompt(TEMPLATE, TOKENIZER, history, messages)
        generated = [A, B, *TOKENIZER.encode(f" {number}")]
        answer = {"role": "assistant", "content": f"ab {number}"}
        history.remember(answer, generated, prompt.ids)
        messages += [answer, USER]
        longer = build_prompt(TEMPLATE, TOKENIZER, history, messages)
        assert longer.ids[: len(prompt.ids) + 4] == prompt.ids + generated
        assert (longer.replayed_turns, longer.tokenized_turns) == (number + 1, 0)


def test_memory_is_bounded_and_the_latest_used_stay() -> None:
    history = TurnHistory(max_bytes=3 * (ENTRY_BYTES + 4))
    answers = [{"role": "assistant", "content": str(number)} for number in range(4)]
    for answer in answers[:3]:
        history.remember(answer, [A], [B])
    build_prompt(TEMPLATE, TOKENIZER, history, [USER, answers[0], USER])
    history.remember(answers[3], [A], [B])
    known = [build_prompt(TEMPLATE, TOKENIZER, history, [USER, answer]).replayed_turns for answer in answers]
    assert known == [1, 0, 1, 1]
    assert (len(history), history.bytes) == (3, 3 * (ENTRY_BYTES + 4))
    history.remember(answers[3], [A], [B])
    assert (len(history), history.bytes) == (3, 3 * (ENTRY_BYTES + 4))


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{{ m.role }}: {{ m.content | upper }}\n{% endfor %}",
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{{ 'assistant>' if add_generation_prompt }}",
        "{{ messages[-1].content }}{% if add_generation_prompt %}|{% endif %}",
    ],
)
def test_template_that_moves_answers_is_rendered_as_it_is(source: str) -> None:
    template, history = ChatTemplate(source, {}), TurnHistory()
    answer = {"role": "assistant", "content": "ab"}
    history.remember(answer, [A, B], [])
    prompt = build_prompt(template, TOKENIZER, history, [USER, answer, USER])
    assert prompt == Prompt(TOKENIZER.encode(template.render([USER, answer, USER])), tokenized_turns=1)


def test_reasoning_is_not_replayed_because_templates_drop_it() -> None:
    history = TurnHistory()
    history.remember({"role": "assistant", "content": "<think>a</think>b"}, [A], [B])
    assert len(history) == 0
