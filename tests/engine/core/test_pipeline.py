"""Decoding ahead against decoding step by step: the same texts, the same cache, nothing left behind."""

import itertools
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
import torch
from engine_runs import run
from hypothesis import given, settings
from hypothesis import strategies as st
from lookahead import FakeRunner, fake_model

from engine.cache.prefix import PrefixNode
from engine.config import EngineConfig
from engine.core.engine import Engine
from engine.core.request import Request, SamplingParams, StepOutput
from engine.weights.loader import Checkpoint

LIMITS = {"block_size": 4, "max_running": 4, "max_step_tokens": 24, "max_context": 96, "state_cache_bytes": 1 << 26}
STOPS = tuple(range(0, 256, 11))
WAYS = ["plain", "graphs"]

PARAMS = st.builds(
    SamplingParams,
    max_tokens=st.integers(1, 24),
    temperature=st.sampled_from([0.0, 0.0, 0.7, 1.5]),
    top_k=st.sampled_from([0, 0, 3]),
    top_p=st.sampled_from([1.0, 0.8]),
    min_p=st.sampled_from([0.0, 0.05]),
    seed=st.integers(0, 3),
    stop=st.sampled_from([(), (), ("a", "Q", "7")]),
    stop_token_ids=st.sampled_from([(), STOPS]),
    ignore_eos=st.booleans(),
    n=st.sampled_from([1, 1, 1, 2]),
    logprobs=st.sampled_from([None] * 9 + [1]),
    presence_penalty=st.sampled_from([0.0] * 9 + [0.5]),
    prompt_logprobs=st.sampled_from([None] * 9 + [0]),
)
PROMPT = st.builds(
    lambda stem, rest: [stem] * 13 + rest, st.sampled_from([1, 2]), st.lists(st.integers(3, 4), min_size=1, max_size=30)
) | st.lists(st.integers(0, 255), min_size=1, max_size=20)
ARRIVAL = st.tuples(st.just("arrive"), PROMPT, PARAMS, st.sampled_from([None, "a", "b"]))
EVENT = st.one_of(
    ARRIVAL,
    ARRIVAL,
    st.tuples(st.just("abort"), st.integers(0, 20)),
    st.tuples(st.just("end"), st.sampled_from("ab")),
    st.tuples(st.just("logits"), PROMPT),
    *[st.tuples(st.just("step"), st.integers(1, 12))] * 3,
)


class Driver:
    """Does to an engine what it is told, and notes what every choice of every request was given."""

    def __init__(self, checkpoint: Checkpoint, **limits: Any) -> None:
        self.engine = Engine(checkpoint, EngineConfig(**{**LIMITS, **limits}))
        self.outputs: dict[tuple[str, int], list[StepOutput]] = {}
        self.aborted: set[str] = set()
        self.names = itertools.count()

    def arrive(self, prompt: list[int], params: SamplingParams, session: str | None) -> None:
        name = str(next(self.names))
        self.engine.add(Request(name, tuple(prompt), params, session))
        self.outputs |= {(name, index): [] for index in range(params.n)}

    def abort(self, number: int) -> None:
        """Give up a request that has not ended, if it is one of this number."""
        if str(number) in self.engine._requests:
            self.aborted.add(str(number))
            self.engine.abort(str(number))

    def end(self, session: str) -> None:
        self.engine.end_session(session)

    def logits(self, prompt: list[int]) -> None:
        if self.engine._memory.pool.free + self.engine._memory.pool.evictable > 13:
            self.engine.logits(prompt)

    def step(self, count: int) -> None:
        for _ in range(count):
            if self.engine.has_work:
                for output in self.engine.step():
                    assert output.error is None, output.error
                    assert output.request_id not in self.aborted
                    self.outputs[output.request_id, output.index].append(output)

    def finish(self) -> None:
        for _ in range(5000):
            if not self.engine.has_work:
                break
            self.step(1)
        assert not self.engine.has_work
        memory = self.engine._memory
        assert memory.prefix is not None
        assert memory.pool.held == 0
        assert len(memory.prefix) == memory.pool.evictable == memory.pool.num_blocks - memory.pool.free
        assert memory.slots is None or memory.slots.held == 0
        assert memory.swap is None or memory.swap.used == 0

    def texts(self) -> dict[tuple[str, int], Any]:
        """What came of each choice, but for when: ids, text, log-probabilities, and how it ended."""
        return {
            choice: (
                [token for one in outputs for token in one.token_ids],
                "".join(one.text for one in outputs),
                [one.finish_reason for one in outputs if one.finish_reason],
                [one.stop_string for one in outputs if one.stop_string],
                [logprob for one in outputs for logprob in (*one.logprobs, *one.prompt_logprobs)],
            )
            for choice, outputs in self.outputs.items()
        }

    def cached(self) -> dict[tuple[str, int], int]:
        return {choice: outputs[0].cached_tokens for choice, outputs in self.outputs.items() if outputs}

    def tree(self) -> dict[tuple[int, ...], bool]:
        """The prefixes that are cached, and whether a state is kept with them."""
        assert self.engine._memory.prefix is not None
        return {spelled: node.snapshot is not None for spelled, node in below(self.engine._memory.prefix.root, ())}


def below(node: PrefixNode, before: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], PrefixNode]]:
    for child in node.children.values():
        spelled = before + child.key[:4]
        yield spelled, child
        yield from below(child, spelled)


@pytest.fixture(params=["attention", "hybrid"])
def model(request: pytest.FixtureRequest, checkpoint: Checkpoint, hybrid: Checkpoint) -> Checkpoint:
    return hybrid if request.param == "hybrid" else checkpoint


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=40, deadline=None)
@given(events=st.lists(EVENT, max_size=40), blocks=st.integers(24, 40), swap=st.sampled_from([0, 1 << 20]))
def test_texts_are_the_same_whatever_happens(
    checkpoint: Checkpoint, hybrid: Checkpoint, way: str, events: list[tuple[Any, ...]], blocks: int, swap: int
) -> None:
    """Few blocks: sequences are preempted, prefixes evicted. An aborted request got the beginning of its text."""
    for model, with_prefix in ((checkpoint, True), (hybrid, True)):
        drivers = []
        for ahead in (False, True):
            with fake_model(with_graphs=ahead and way == "graphs"):
                driver = Driver(model, num_blocks=blocks, swap_bytes=swap, decode_ahead=ahead, prefix_cache=with_prefix)
            for name, *arguments in events:
                getattr(driver, name)(*arguments)
            driver.finish()
            drivers.append(driver)
        plain, ahead_of_it = (driver.texts() for driver in drivers)
        for choice, want in plain.items():
            if choice[0] in drivers[0].aborted | drivers[1].aborted:
                shorter, longer = sorted((want[0], ahead_of_it[choice][0]), key=len)
                assert longer[: len(shorter)] == shorter
            else:
                assert ahead_of_it[choice] == want


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=40, deadline=None)
@given(waves=st.lists(st.lists(st.tuples(PROMPT, PARAMS), min_size=1, max_size=6), min_size=1, max_size=4))
def test_the_cache_is_the_same_where_there_is_room(
    checkpoint: Checkpoint, hybrid: Checkpoint, way: str, waves: list[list[tuple[list[int], SamplingParams]]]
) -> None:
    """Waves of requests, each of which goes on from the answers of the one before."""
    for model in (checkpoint, hybrid):
        found = []
        for ahead in (False, True):
            with fake_model(with_graphs=ahead and way == "graphs"):
                driver = Driver(model, num_blocks=600, decode_ahead=ahead)
            said: list[list[int]] = [[]]
            for wave in waves:
                for number, (prompt, params) in enumerate(wave):
                    driver.arrive((said[number % len(said)] + prompt)[-70:], params, None)
                driver.finish()
                said = [tokens for tokens, *_ in driver.texts().values()]
            found.append((driver.texts(), driver.cached(), driver.tree()))
        assert found[0] == found[1]
