"""sweq-nano behind the real server, as the agent on generated instances: caches change nothing, and calls are calls."""

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from forced_server import Server
from nano_work import CLIENTS, MAX_TOKENS, Client, Turn, ask, calls_of, near_instances, recite, serving, work

from harness.agent.schemas import TOOLS

GRID = 64
"""Tokens at whose multiples a hybrid model's prefix can be taken up."""
DETERMINISTIC = {"deterministic": True}


@pytest.fixture(scope="module")
def warm() -> Iterator[Server]:
    """A deterministic server, so that every client is told the same, whatever came before."""
    with serving(**DETERMINISTIC) as server:
        yield server


@pytest.fixture(scope="module")
def conversations(warm: Server, tmp_path_factory: pytest.TempPathFactory) -> list[list[Turn]]:
    """The agent's work on two instances."""
    return [work(warm, instance, tmp_path_factory.mktemp("warm")) for instance in near_instances(2)]


def known_tokens(turn: Turn) -> int:
    """Tokens of the turn that the cache can hold: the last generated one was never computed."""
    return turn.usage.prompt_tokens + turn.usage.completion_tokens - 1


def said(message: Any) -> tuple[str, list[tuple[str, Any]]]:
    return message["content"], calls_of(message)


def test_every_turn_says_the_same_without_a_cache(conversations: list[list[Turn]]) -> None:
    with serving(prefix_cache=False, **DETERMINISTIC) as cold:
        for turns in conversations:
            assert len(turns) >= 4
            assert all(turn.usage.cached_tokens > 0 for turn in turns[1:])
            for turn in turns:
                message, usage = ask(cold, turn.history)
                assert said(message) == said(turn.message)
                assert usage.cached_tokens == 0
                assert usage.total == turn.usage.total


def test_every_turn_finds_all_before_it_in_the_cache(tmp_path: Path) -> None:
    first, second = near_instances(2)
    with serving() as server:
        for turns in (work(server, first, tmp_path), recite(server, second)):
            assert len(turns) >= 4
            for before, after in pairwise(turns):
                known = known_tokens(before)
                assert after.usage.cached_tokens == known - known % GRID


def written_calls(server: Server, history: list[Any]) -> list[tuple[str, dict[str, str]]]:
    """The calls in the text that the model writes, taken out of it without the server's parser."""
    service = server.session.service
    assert service is not None
    assert service.template is not None
    prompt = service.tokenizer.encode(service.template.render(history, TOOLS))
    answer = server.client().completions.create(model="m", prompt=prompt, temperature=0, max_tokens=MAX_TOKENS)
    text = answer.choices[0].text
    parts = re.split(r"<function=(\w+)>\n", text)[1:]
    bodies = zip(parts[::2], parts[1::2], strict=True)
    return [(name, dict(re.findall(r"<parameter=(\w+)>\n(.*?)\n</parameter>", body, re.S))) for name, body in bodies]


@pytest.fixture(scope="module")
def written(warm: Server, conversations: list[list[Turn]]) -> list[tuple[Turn, list[tuple[str, dict[str, str]]]]]:
    """Two turns of a conversation with their calls: the first, and an edit, whose text is code with its indentation."""
    turns = conversations[0]
    edit = next(turn for turn in turns if calls_of(turn.message)[0][0] == "edit")
    return [(turn, written_calls(warm, turn.history)) for turn in (turns[0], edit)]


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.__name__)
def test_calls_arrive_through_every_client(client: Client, warm: Server, written: list[Any]) -> None:
    assert [name for _, calls in written for name, _ in calls] == ["bash", "edit"]
    for turn, calls in written:
        assert client(warm, turn.history) == (calls, turn.usage.prompt_tokens)
