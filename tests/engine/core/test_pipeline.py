"""Decoding ahead against decoding step by step: the same texts, the same cache, nothing left behind."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from engine_runs import run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lookahead import fake_model
from torch import Tensor

from engine.cache.prefix import PrefixNode
from engine.config import EngineConfig
from engine.core.engine import Engine
from engine.core.pipeline import Launched, Tokens
from engine.core.request import Request, SamplingParams, StepOutput
from engine.core.sequence import Chunk, SequenceState
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


MODELS = ["checkpoint", "hybrid"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("model", MODELS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(events=st.lists(EVENT, max_size=40), blocks=st.integers(24, 40), swap=st.sampled_from([0, 1 << 20]))
def test_texts_are_the_same_whatever_happens(
    request: pytest.FixtureRequest, model: str, way: str, events: list[tuple[Any, ...]], blocks: int, swap: int
) -> None:
    """Few blocks: sequences are preempted, prefixes evicted. An aborted request got the beginning of its text."""
    drivers = []
    for ahead in (False, True):
        with fake_model(with_graphs=ahead and way == "graphs"):
            limits = {"num_blocks": blocks, "swap_bytes": swap, "decode_ahead": ahead}
            driver = Driver(request.getfixturevalue(model), **limits)
            for name, *arguments in events:
                getattr(driver, name)(*arguments)
            driver.finish()
            drivers.append(driver)
    plain, found = (driver.texts() for driver in drivers)
    for choice, want in plain.items():
        if choice[0] in drivers[0].aborted | drivers[1].aborted:
            shorter, longer = sorted((want[0], found[choice][0]), key=len)
            assert longer[: len(shorter)] == shorter
        else:
            assert found[choice] == want


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("model", MODELS)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(waves=st.lists(st.lists(st.tuples(PROMPT, PARAMS), min_size=1, max_size=6), min_size=1, max_size=4))
def test_the_cache_is_the_same_where_there_is_room(
    request: pytest.FixtureRequest, model: str, way: str, waves: list[list[tuple[list[int], SamplingParams]]]
) -> None:
    """Waves of requests, each of which goes on from the answers of the one before."""
    found = []
    for ahead in (False, True):
        with fake_model(with_graphs=ahead and way == "graphs"):
            driver = Driver(request.getfixturevalue(model), num_blocks=600, decode_ahead=ahead)
            said: list[list[int]] = [[]]
            for wave in waves:
                for number, (prompt, params) in enumerate(wave):
                    driver.arrive((said[number % len(said)] + prompt)[-70:], params, None)
                driver.finish()
                said = [tokens for tokens, *_ in driver.texts().values()]
            found.append((driver.texts(), driver.cached(), driver.tree()))
    assert found[0] == found[1]


GREEDY = SamplingParams(max_tokens=6, temperature=0.0, ignore_eos=True)


@pytest.fixture
def watched(checkpoint: Checkpoint) -> Iterator[tuple[Driver, list[str]]]:
    """A driver, and what its pipeline's launcher does: "known" and "ahead" are launches, "read" is a reading."""
    with fake_model(with_graphs=False):
        driver, log = Driver(checkpoint, num_blocks=60, decode_ahead=True), list[str]()
        assert driver.engine._pipeline is not None
        launcher = driver.engine._pipeline._launcher
        launch = launcher.launch

        def watch(sequences: Sequence[SequenceState], sources: Sequence[int] | None = None) -> Launched:
            log.append(f"{'known' if sources is None else 'ahead'} {len(sequences)}")
            return Watched(launch(sequences, sources), log)

        launcher.launch = watch  # type: ignore[method-assign]
        yield driver, log


class Watched:
    def __init__(self, launched: Launched, log: list[str]) -> None:
        self.launched, self.log = launched, log

    def read(self) -> Tokens:
        self.log.append("read")
        return self.launched.read()


def test_the_next_step_is_launched_before_tokens_are_read(watched: tuple[Driver, list[str]]) -> None:
    """The first token comes from the prefill, and after the last nothing is launched."""
    driver, log = watched
    driver.arrive([1, 2, 3], GREEDY, None)
    driver.finish()
    assert log == ["known 1", "ahead 1", "read", "ahead 1", "read", "ahead 1", "read", "ahead 1", "read", "read"]


def test_a_batch_shrinks_by_what_is_known_to_end(watched: tuple[Driver, list[str]]) -> None:
    driver, log = watched
    driver.arrive([1, 2, 3], GREEDY, None)
    driver.arrive([4, 5, 6], replace(GREEDY, max_tokens=3), None)
    driver.finish()
    assert log == ["known 2", "ahead 2", "read", "ahead 1", "read", "ahead 1", "read", "ahead 1", "read", "read"]


def test_an_arrival_is_admitted_after_the_step_in_flight(watched: tuple[Driver, list[str]]) -> None:
    driver, log = watched
    driver.arrive([1, 2, 3], GREEDY, None)
    driver.step(2)
    driver.arrive([4, 5, 6], GREEDY, None)
    driver.step(1)
    assert log == ["known 1", "ahead 1", "read", "read"]
    driver.step(1)
    assert [len(outputs) for outputs in driver.outputs.values()] == [4, 1]
    driver.step(1)
    assert log[4:] == ["known 2", "ahead 2", "read"]


def test_a_queue_behind_a_full_batch_is_no_reason_to_wait(watched: tuple[Driver, list[str]]) -> None:
    driver, log = watched
    for first in range(6):
        driver.arrive([first, 2, 3], GREEDY, None)
    driver.step(3)
    assert log == ["known 4", "ahead 4", "read", "ahead 4", "read"]


def test_who_leaves_frees_all_at_once_though_a_step_is_in_flight(watched: tuple[Driver, list[str]]) -> None:
    driver, log = watched
    driver.arrive([1, 2, 3], GREEDY, None)
    driver.step(2)
    assert log[-2:] == ["ahead 1", "read"]
    driver.abort(0)
    assert not driver.engine.has_work
    assert driver.engine.stats()["blocks_used"] == 0
    driver.arrive([1, 2, 3], GREEDY, None)
    driver.finish()
    assert len(driver.outputs["1", 0]) == 6


@pytest.mark.parametrize("ahead", [False, True])
def test_a_failing_request_ends_alone(hybrid: Checkpoint, monkeypatch: pytest.MonkeyPatch, ahead: bool) -> None:
    """The failure comes after the states have moved on, where the request decodes ahead."""
    wishes = {
        "bad": ([9] * 20, GREEDY),
        "good": ([1] * 20, GREEDY),
        "drawn": ([2] * 5, replace(GREEDY, temperature=1.0, seed=5)),
    }
    with fake_model(with_graphs=False):
        want = run(Engine(hybrid, EngineConfig(num_blocks=60, **LIMITS)), wishes)
        engine = Engine(hybrid, EngineConfig(num_blocks=60, decode_ahead=ahead, **LIMITS))
        compute = engine._runner.run

        def run_and_fail(chunks: Sequence[Chunk], *, every_row: bool = False) -> Tensor:
            logits = compute(chunks, every_row=every_row)
            if any(chunk.sequence.request.request_id == "bad" and chunk.start > 21 for chunk in chunks):
                raise RuntimeError("planted")
            return logits

        monkeypatch.setattr(engine._runner, "run", run_and_fail)
        done = run(engine, wishes)
    assert done["bad"].error == "RuntimeError: planted"
    assert done["bad"].token_ids == want["bad"].token_ids[: len(done["bad"].token_ids)]
    assert (done["good"], done["drawn"]) == (want["good"], want["drawn"])
    assert engine.stats()["state_slots_used"] == engine.stats()["blocks_used"] == 0
