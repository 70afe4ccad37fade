"""Steps launched ahead on a GPU against the same steps one after the other: the same texts, whatever ends when.

Rounding may follow from the size of a graph's batch, and who ends by surprise stays in the batch for a step more: where
there are such ends, all batches go to one graph.
"""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from engine import LLM, SamplingParams
from engine.core import graphs, sampler
from engine.core.request import Completion, Request

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

PROMPTS = [[5, 6, 7] * 30, [9], list(range(100)), [40] * 70, [3] * 33]
LIMITS = {"max_context": 512, "max_running": 5, "max_step_tokens": 96, "num_blocks": 2000}
STOPS = tuple(range(0, 250, 9))
GREEDY = SamplingParams(max_tokens=40, temperature=0, ignore_eos=True)
TOP_K = replace(GREEDY, temperature=0.9, top_k=20, top_p=0.9, seed=1)
NUCLEUS = replace(GREEDY, temperature=1.2, top_p=0.8, seed=2)
WHOLE = replace(GREEDY, temperature=1.0, min_p=0.01, seed=3)
WAYS = {
    "greedy": [GREEDY] * 5,
    "top_k": [TOP_K] * 5,
    "nucleus": [NUCLEUS] * 5,
    "whole": [WHOLE] * 5,
    "filtered": [GREEDY, TOP_K, GREEDY, TOP_K, TOP_K],
    "mixed": [GREEDY, TOP_K, WHOLE, GREEDY, WHOLE],
}


def wishes(way: str, stops: tuple[int, ...] = ()) -> list[SamplingParams]:
    """Answers of unlike lengths, so that batches shrink."""
    return [replace(one, max_tokens=9 + 8 * number, stop_token_ids=stops) for number, one in enumerate(WAYS[way])]


def said(completions: list[Completion]) -> list[tuple[list[int], str, str, int]]:
    return [(one.token_ids, one.text, one.finish_reason, one.cached_tokens) for one in completions]


def compare(ahead: LLM, plain: LLM, params: list[SamplingParams]) -> None:
    """Twice, the second time from what the prefix cache kept of the first."""
    for _ in range(2):
        assert said(ahead.generate(PROMPTS, params)) == said(plain.generate(PROMPTS, params))
    stats = ahead.engine.stats()
    assert (stats["blocks_used"], stats["state_slots_used"]) == (0, 0)


def pair(shape: str) -> tuple[LLM, LLM]:
    """Of one shape: an engine that decodes ahead, and one that does not."""
    return LLM(shape, "bf16", "cuda", decode_ahead=True, **LIMITS), LLM(shape, "bf16", "cuda", **LIMITS)


@pytest.fixture(scope="module", params=["synthetic:tiny", "synthetic:llama-tiny"])
def shape(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def engines(shape: str) -> tuple[LLM, LLM]:
    return pair(shape)


@pytest.fixture(scope="module")
def engines_of_one_graph(shape: str) -> Iterator[tuple[LLM, LLM]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graphs, "BUCKETS", (8,))
        yield pair(shape)


@pytest.mark.parametrize("way", WAYS)
def test_texts_of_known_lengths_are_the_same(engines: tuple[LLM, LLM], way: str) -> None:
    compare(*engines, wishes(way))


@pytest.mark.parametrize("way", WAYS)
def test_texts_with_stops_in_between_are_the_same(engines_of_one_graph: tuple[LLM, LLM], way: str) -> None:
    compare(*engines_of_one_graph, wishes(way, STOPS))


def test_a_nucleus_that_graphs_cannot_decide_is_drawn_by_the_host(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs sort as many candidates as there were when they were captured."""
    monkeypatch.setattr(sampler, "CANDIDATES", 4)
    compare(*pair(shape), wishes("nucleus"))


def test_all_steps_but_the_first_are_launched_ahead(engines: tuple[LLM, LLM], monkeypatch: pytest.MonkeyPatch) -> None:
    """Their time is the device's own."""
    for llm in engines:
        llm.generate(PROMPTS[:1], GREEDY)
    pipeline = engines[0].engine._pipeline
    assert pipeline is not None
    assert engines[1].engine._pipeline is None
    launch, known = pipeline._launcher.launch, list[bool]()

    def watch(sequences, sources=None):  # type: ignore[no-untyped-def]
        known.append(sources is None)
        return launch(sequences, sources)

    monkeypatch.setattr(pipeline._launcher, "launch", watch)
    before = pipeline.device_time()
    for llm in engines:
        llm.generate(PROMPTS[:1], GREEDY)
    after = pipeline.device_time()
    assert known == [True] + [False] * (GREEDY.max_tokens - 2)
    assert before is not None
    assert after is not None
    assert after[1] - before[1] == GREEDY.max_tokens - 1
    assert 0 < after[0] - before[0] < 60


def test_an_abort_in_flight_spoils_nobody(shape: str) -> None:
    """A newcomer gets the slot of a request whose next step was in flight when it was given up.

    Batches are others than those of one call, so rounding may part the texts later on; their beginnings agree.
    """
    llm = LLM(shape, "bf16", "cuda", **(LIMITS | {"prefix_cache": False}))
    want = llm.generate(PROMPTS, GREEDY)
    engine, tokens = llm.engine, {name: list[int]() for name in "01234"}
    arrivals = {0: "12", 14: "0", 17: "34"}
    engine.add(Request("given up", tuple(PROMPTS[3]), GREEDY))
    for step in range(200):
        if step == 14:
            engine.abort("given up")
        for name in arrivals.get(step, ""):
            engine.add(Request(name, tuple(PROMPTS[int(name)]), GREEDY))
        for output in engine.step() if engine.has_work else []:
            tokens.get(output.request_id, []).extend(output.token_ids)
    assert not engine.has_work
    assert [len(got) for got in tokens.values()] == [GREEDY.max_tokens] * 5
    assert [got[:4] for got in tokens.values()] == [one.token_ids[:4] for one in want]
    assert engine.stats()["blocks_used"] == engine.stats()["state_slots_used"] == 0
