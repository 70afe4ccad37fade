"""Conversations as passages: what is counted, and that counting agrees with a plain formula over the logits."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engine import LLM
from engine.errors import UserError
from engine.measure.conversations import read_conversations, score_file
from engine.measure.perplexity import Passage

NANO = "nano/model"
CALL = {"type": "function", "function": {"name": "bash", "arguments": '{"command": "ls"}'}}
TALK = [
    {"role": "user", "content": "List the files."},
    {"role": "assistant", "content": "I list them.", "tool_calls": [CALL]},
    {"role": "tool", "content": "exit code: 0\na.py"},
    {"role": "assistant", "content": "There is one."},
    {"role": "user", "content": "Nobody answers this."},
]


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(NANO, "f32", "cpu", max_context=512, max_running=1, num_blocks=64)


def write(folder: Path, *talks: object) -> Path:
    file = folder / "talks.jsonl"
    file.write_text("\n".join(talk if isinstance(talk, str) else json.dumps(talk) for talk in talks) + "\n\n")
    return file


def counted_texts(llm: LLM, passages: list[Passage]) -> list[str]:
    """The runs of counted tokens of every passage, decoded."""
    texts = []
    for passage in passages:
        run: list[int] = []
        for token, counts in zip([*passage.ids, 0], [*passage.counted, False], strict=True):
            if counts:
                run.append(token)
            elif run:
                texts.append(llm.tokenizer.decode(run, special=True))
                run = []
    return texts


def test_answers_are_counted_and_nothing_else(llm: LLM, tmp_path: Path) -> None:
    call = "<tool_call>\n<function=bash>\n<parameter=command>\nls\n</parameter>\n</function>\n</tool_call>"
    texts = counted_texts(llm, read_conversations(write(tmp_path, {"messages": TALK}), llm.checkpoint))
    assert texts == [f"I list them.\n{call}<|im_end|>", "There is one.<|im_end|>"]


def test_a_template_that_forgets_begins_anew(llm: LLM, tmp_path: Path) -> None:
    """Of this one, an earlier answer is not rendered as it was given."""
    source = (
        "{% for m in messages %}[{{ m.role }}]"
        "{{ m.content[:4] if m.role == 'assistant' and not loop.last else m.content }}\n"
        "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    talk = [{"role": r, "content": c} for r, c in (("user", "one"), ("assistant", "first answer"), ("user", "two"))]
    file = write(tmp_path, {"messages": [*talk, {"role": "assistant", "content": "second answer"}]})
    passages = read_conversations(file, replace(llm.checkpoint, chat_template=source))
    assert counted_texts(llm, passages) == ["first answer", "second answer"]
    whole = [llm.tokenizer.decode(passage.ids, special=True) for passage in passages]
    assert whole == [
        "[user]one\n[assistant]first answer",
        "[user]one\n[assistant]firs\n[user]two\n[assistant]second answer",
    ]


def test_figures_follow_from_the_logits(llm: LLM, tmp_path: Path) -> None:
    file = write(tmp_path, {"messages": TALK}, {"messages": TALK[:2]})
    losses = []
    for passage in read_conversations(file, llm.checkpoint):
        logprobs = llm.logits(passage.ids)[:, : llm.tokenizer.vocab_size].double().log_softmax(-1)
        losses += [-logprobs[at - 1, passage.ids[at]] for at, counts in enumerate(passage.counted) if counts]
    found = score_file(llm, file, 1024, llm)
    assert found["tokens"] == len(losses)
    assert found["ppl"] == pytest.approx(math.exp(torch.stack(losses).mean().item()), rel=1e-5)
    assert found["kld_mean"] == pytest.approx(0.0, abs=1e-9)
    assert found["top1"] == 1.0


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("no JSON", 'line 1: not an object with "messages"'),
        ({"messages": TALK[:1]}, "line 1: has no message of the assistant"),
        ({"messages": [{"role": "robot", "content": "?"}, TALK[1]]}, r"line 1: messages\[0\].role must be one of"),
    ],
)
def test_a_bad_line_is_named(llm: LLM, tmp_path: Path, line: object, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        score_file(llm, write(tmp_path, line), 1024)


def test_a_file_or_a_template_that_is_missing(llm: LLM, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is empty; give a conversation a line"):
        score_file(llm, write(tmp_path), 1024)
    bare = replace(llm.checkpoint, chat_template=None)
    with pytest.raises(UserError, match="has no chat template"):
        read_conversations(write(tmp_path, {"messages": TALK}), bare)
