"""A conversation as the agent's loop sends it, rendered and tokenized as the engine does, with the loss mask."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from engine.text.chat import ChatTemplate
from harness.agent.prompts import load_prompts
from harness.agent.schemas import TOOLS
from harness.sandbox.base import TESTBED
from nano.data.conversation import COMMAND_TIMEOUT, STEP_LIMIT, Conversation, Turn
from nano.data.tokenizer import CALL_END, CALL_START, MODEL, TURN_END, TURN_START, LineEncoder, load_tokenizer

Message = dict[str, Any]


@dataclass(frozen=True)
class Episode:
    """One conversation for training.

    `token_ids` uint16 [length]. `mask` bool [length]: True on the ids that the model is to learn to generate, which are
    those of its own turns from behind the generation prompt up to and including the end of turn, mistakes left out.
    `edit_spans`: ranges of the ids of the right edit's call, from `<tool_call>` to `</tool_call>`.
    """

    token_ids: np.ndarray
    mask: np.ndarray
    edit_spans: tuple[tuple[int, int], ...]


def to_messages(conversation: Conversation) -> list[Message]:
    """The messages that the agent's loop holds after the last turn, in the wire form of chat completions."""
    prompts = load_prompts("tools")
    task = prompts.fill(
        "task",
        issue=conversation.issue.strip(),
        testbed=TESTBED,
        step_limit=STEP_LIMIT,
        command_timeout=f"{COMMAND_TIMEOUT:g}",
    )
    messages: list[Message] = [
        {"role": "system", "content": prompts.fill("system", testbed=TESTBED)},
        {"role": "user", "content": task},
    ]
    for number, turn in enumerate(conversation.turns):
        messages += _exchange(turn, f"call_{number}")
    return messages


def _exchange(turn: Turn, call_id: str) -> list[Message]:
    function = {"name": turn.tool, "arguments": dict(turn.arguments)}
    call = {"id": call_id, "type": "function", "function": function}
    return [
        {"role": "assistant", "content": turn.text, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call_id, "content": turn.observation},
    ]


def render(conversation: Conversation) -> str:
    """The whole conversation through the model's chat template, but for the observation of the submission, which no
    model ever reads."""
    return _template().render(to_messages(conversation)[:-1], TOOLS, add_generation_prompt=False)


def tokenize(conversation: Conversation) -> Episode:
    """The conversation as ids, mask and edit spans; ValueError where its text holds a token of the chat format."""
    ids = np.array(_encoder().encode(render(conversation)), dtype=np.uint16)
    marks = _marks()
    starts = _find(ids, marks.prompt) + len(marks.prompt)
    ends = np.flatnonzero(ids == marks.end)
    ends = ends[np.searchsorted(ends, starts)] + 1
    if len(starts) != len(conversation.turns) or (ids == marks.start).sum() != 2 * len(conversation.turns) + 1:
        raise ValueError("the text of a conversation holds a token of the chat format")
    mask = np.zeros(len(ids), dtype=np.bool_)
    spans = []
    for turn, start, end in zip(conversation.turns, starts.tolist(), ends.tolist(), strict=True):
        mask[start:end] = turn.taught
        if turn.mends:
            first, last = (int(np.flatnonzero(ids[start:end] == mark)[0]) for mark in (marks.call, marks.call_end))
            spans.append((start + first, start + last + 1))
    return Episode(ids, mask, tuple(spans))


@dataclass(frozen=True)
class _Marks:
    """Ids by which turns are found; `prompt` are those of the generation prompt."""

    prompt: tuple[int, ...]
    start: int
    end: int
    call: int
    call_end: int


@cache
def _marks() -> _Marks:
    ids = [load_tokenizer().token_id(token) for token in (TURN_START, TURN_END, CALL_START, CALL_END)]
    start, end, call, call_end = (-1 if each is None else each for each in ids)
    prompt = load_tokenizer().encode(_template().generation_prompt, affixes=False)
    return _Marks(tuple(prompt), start, end, call, call_end)


def _find(ids: np.ndarray, wanted: Sequence[int]) -> np.ndarray:
    """Where the sequence `wanted` begins in `ids`, ascending."""
    hits = np.flatnonzero(ids[: len(ids) - len(wanted) + 1] == wanted[0])
    for offset, each in enumerate(wanted):
        hits = hits[ids[hits + offset] == each]
    return hits


@cache
def _template() -> ChatTemplate:
    file = MODEL / "chat_template.jinja"
    return ChatTemplate(file.read_text(encoding="utf-8"), {}, str(file))


@cache
def _encoder() -> LineEncoder:
    return LineEncoder(load_tokenizer())
