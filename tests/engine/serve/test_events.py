"""The events that nearly every token takes are put together without a JSON encoder: they must still be JSON."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serve_fixtures import scripted_service

from engine.core.request import StepOutput
from engine.serve.answer import AnswerForm
from engine.serve.anthropic.message_format import MessageFormat
from engine.serve.chat import ChatFormat, Dialogue
from engine.serve.completion import CompletionFormat
from engine.serve.fields import ChatFields

SERVICE = scripted_service()
OPTIONS: dict[str, Any] = {"choices": 3, "logprobs": False, "usage": True}


def dialogue() -> Dialogue:
    return Dialogue.open(SERVICE, ChatFields(messages=[{"role": "user", "content": "?"}]))


FORMS: dict[str, tuple[Callable[[], AnswerForm], Callable[[Any], Any]]] = {
    "chat": (
        lambda: ChatFormat('id "1"', dialogue(), **OPTIONS),
        lambda event: event["choices"][0] | {"choices": len(event["choices"])},
    ),
    "completions": (
        lambda: CompletionFormat('id "1"', SERVICE.name, SERVICE.tokenizer, **OPTIONS),
        lambda event: event["choices"][0] | {"choices": len(event["choices"])},
    ),
    "messages": (lambda: MessageFormat("id", dialogue(), is_kept=False, fills_context=False), lambda event: event),
}
EXPECTED: dict[str, Callable[[int, str], Any]] = {
    "chat": lambda index, text: (
        {"index": index, "delta": {"content": text}, "logprobs": None, "finish_reason": None} | {"choices": 1}
    ),
    "completions": lambda index, text: (
        {"index": index, "text": text, "logprobs": None, "finish_reason": None} | {"choices": 1}
    ),
    "messages": lambda _, text: (
        {"type": "content_block_delta", "index": 0} | {"delta": {"type": "text_delta", "text": text}}
    ),
}


@pytest.mark.parametrize("name", FORMS)
@given(text=st.text(min_size=1), index=st.integers(0, 2))
def test_an_event_says_exactly_its_text(name: str, text: str, index: int) -> None:
    make, part = FORMS[name]
    choice = 0 if name == "messages" else index
    data = make().event(StepOutput("a", (1,), text, index=choice)).decode()
    # No text may break the framing: an event ends with the first empty line.
    *_, last, nothing = data.split("\n\n")
    assert nothing == ""
    assert part(json.loads(last.partition("data: ")[2])) == EXPECTED[name](choice, text)
