"""The sampler's distributions against a plain reference that filters one token at a time."""

import math
from collections import Counter
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from engine.core import sampler
from engine.core.penalties import Penalties
from engine.core.request import Request, SamplingParams
from engine.core.sequence import SequenceState
from engine.core.text_stream import TextStream
from engine.weights.loader import Checkpoint

FILTERS = {
    "temperature": st.floats(0.2, 3),
    "top_k": st.integers(0, 50),
    "top_p": st.floats(0.05, 1.0),
    "min_p": st.floats(0, 0.5),
}
PARAMS = st.builds(SamplingParams, **FILTERS)
LOGITS = st.lists(st.integers(-128, 128).map(lambda n: n / 16), min_size=2, max_size=40, unique=True)


def reference(logits: list[float], params: SamplingParams) -> dict[int, float]:
    """Temperature, then the k likeliest, then the nucleus, then the minimum share, renormalised at each stage."""

    def normalised(weights: dict[int, float]) -> dict[int, float]:
        total = sum(weights.values())
        return {token: weight / total for token, weight in weights.items()}

    peak = max(logits)
    left = normalised({i: math.exp((value - peak) / params.temperature) for i, value in enumerate(logits)})
    ranked = sorted(left, key=lambda token: -left[token])
    if params.top_k:
        left = normalised({token: left[token] for token in ranked[: params.top_k]})
    nucleus, mass = {}, 0.0
    for token in (token for token in ranked if token in left):
        if mass >= params.top_p:
            break
        nucleus[token] = left[token]
        mass += left[token]
    left = normalised(nucleus)
    return normalised({t: p for t, p in left.items() if p >= params.min_p * max(left.values())})


def found(logits: list[float], params: SamplingParams) -> dict[int, float]:
    """The shares of the tokens, read off the cumulative distribution that the sampler inverts."""
    inverted: list[torch.Tensor] = []
    invert = sampler._invert
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            sampler, "_invert", lambda cumulative, own: inverted.append(cumulative) or invert(cumulative, own)
        )
        sampler.draw(torch.tensor([logits]), [params], [0.5])
    cumulative = inverted[-1]
    unsorted = params.top_k <= 0 and params.top_p >= 1
    listed = sorted(range(len(logits)), key=lambda token: 0 if unsorted else -logits[token])[: cumulative.shape[1]]
    shares = cumulative[0].diff(prepend=torch.zeros(1, dtype=torch.float64)) / cumulative[0, -1]
    return {token: share for token, share in zip(listed, shares.tolist(), strict=True) if share > 0}


def sequence(params: SamplingParams, checkpoint: Checkpoint, prompt: tuple[int, ...] = (1,)) -> SequenceState:
    text = TextStream(checkpoint.tokenizer.detokenizer(), ())
    return SequenceState(Request("a", prompt, params), list(prompt), Random(params.seed), text)


@settings(max_examples=100, deadline=None)
@given(logits=LOGITS, params=PARAMS, candidates=st.integers(1, 50))
def test_distribution_equals_the_reference(logits: list[float], params: SamplingParams, candidates: int) -> None:
    want = reference(logits, params)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler, "CANDIDATES", candidates)
        got = found(logits, params)
    assert sum(abs(got.get(token, 0) - want.get(token, 0)) for token in got.keys() | want.keys()) < 1e-6


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(st.tuples(PARAMS, st.floats(0, 1, exclude_max=True), st.integers(0, 2**32)), min_size=1, max_size=6),
    coarse=st.booleans(),
    candidates=st.integers(1, 50),
)
def test_a_draw_is_allowed_and_the_same_alone_and_in_a_batch(
    rows: list[tuple[SamplingParams, float, int]], coarse: bool, candidates: int
) -> None:
    """`coarse` logits have many ties, which an unstable sort could break differently in a batch."""
    logits = torch.stack([torch.randn(40, generator=torch.Generator().manual_seed(seed)) * 3 for _, _, seed in rows])
    logits = logits.round() if coarse else logits
    params, uniforms = [row[0] for row in rows], [row[1] for row in rows]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler, "CANDIDATES", candidates)
        together = sampler.draw(logits, params, uniforms)
        alone = [sampler.draw(logits[i : i + 1], params[i : i + 1], uniforms[i : i + 1])[0] for i in range(len(rows))]
    assert together == alone
    for row, token, one in zip(logits.tolist(), together, params, strict=True):
        allowed = reference(row, one)
        # Of equally likely tokens at the cut, any may be the one that stays.
        assert any(math.isclose(row[token], row[other]) for other in allowed)


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(
        st.tuples(PARAMS | st.just(SamplingParams(temperature=0.0)), st.floats(0, 1, exclude_max=True)),
        min_size=1,
        max_size=6,
    ),
    seed=st.integers(0, 1000),
    candidates=st.integers(1, 50),
    unknown=st.integers(0, 20),
)
def test_the_device_chooses_what_the_host_does(
    rows: list[tuple[SamplingParams, float]], seed: int, candidates: int, unknown: int
) -> None:
    """Or it says that a nucleus holds more than it sorts, or that logits are not numbers."""
    torch.manual_seed(seed)
    logits = torch.stack([torch.randn(30) for _ in rows])
    if unknown < len(rows):
        logits[unknown, 7] = math.nan
    numbers = torch.tensor([sampler.wishes(*row) for row in rows], dtype=torch.float64)
    most = max(sampler.way(params) for params, _ in rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler, "CANDIDATES", candidates)
        tokens, verdicts = (found.tolist() for found in sampler.choose(logits, numbers, most))
        decided = [sampler.is_always_decided(params) for params, _ in rows]
    assert all(0 <= token < 30 for token in tokens)
    for row, (params, uniform) in enumerate(rows):
        if row == unknown:
            assert verdicts[row] == sampler.Verdict.UNKNOWN
        elif verdicts[row] == sampler.Verdict.UNDECIDED:
            assert not decided[row]
        elif params.temperature == 0:
            assert tokens[row] == logits[row].argmax()
        else:
            assert [tokens[row]] == sampler.draw(logits[row : row + 1], [params], [uniform])


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0.7, top_k=5),
        SamplingParams(temperature=1.5, top_p=0.8),
        SamplingParams(temperature=1.0, min_p=0.15),
        SamplingParams(temperature=1.3, top_k=5, top_p=0.9, min_p=0.1),
        SamplingParams(temperature=2.0),
    ],
    ids=repr,
)
def test_draws_follow_the_distribution(params: SamplingParams) -> None:
    logits = [0.3, 1.0, -0.5, 2.0, 1.5, -3.0, 0.9]
    rng = Random(11)
    counts = Counter(sampler.draw(torch.tensor([logits] * 4000), [params] * 4000, [rng.random() for _ in range(4000)]))
    shares = reference(logits, params)
    assert counts.keys() <= shares.keys()
    assert chisquare([counts[t] for t in shares], [4000 * p for p in shares.values()]).pvalue > 1e-3


def adjusted(logits: list[float], params: SamplingParams, prompt: list[int], generated: list[int]) -> list[float]:
    """The formulas, one token at a time, in float64."""
    result = []
    for token, logit in enumerate(logits):
        if token in prompt or token in generated:
            logit = logit / params.repetition_penalty if logit > 0 else logit * params.repetition_penalty
        count = generated.count(token)
        logit -= count * params.frequency_penalty + (count > 0) * params.presence_penalty
        result.append(logit + params.logit_bias.get(token, 0.0))
    return result


TOKENS = st.lists(st.integers(0, 11), max_size=12)


@settings(max_examples=100, deadline=None)
@given(
    logits=st.lists(st.floats(-8, 8, width=32), min_size=10, max_size=10),
    params=st.builds(
        SamplingParams,
        presence_penalty=st.just(0.0) | st.floats(-2, 2),
        frequency_penalty=st.just(0.0) | st.floats(-2, 2),
        repetition_penalty=st.just(1.0) | st.floats(0.5, 2),
        logit_bias=st.dictionaries(st.integers(0, 9), st.floats(-100, 100), max_size=3),
    ),
    prompt=TOKENS,
    generated=st.lists(st.integers(0, 9), max_size=12),
)
def test_penalties_equal_their_formulas(
    logits: list[float], params: SamplingParams, prompt: list[int], generated: list[int]
) -> None:
    """A prompt may hold padding rows, here 10 and 11, which the sampler never sees."""
    penalties = Penalties(params, prompt, 10, torch.device("cpu"))
    penalties.accept(generated[:2])
    penalties.accept(generated[2:])
    row = torch.tensor(logits)
    penalties.apply(row)
    want = adjusted(logits, params, prompt, generated)
    assert row.tolist() == pytest.approx(want, rel=1e-5, abs=1e-4)
    assert Penalties.wanted(params) or want == logits


def test_greedy_takes_the_likeliest_and_draws_nothing(checkpoint: Checkpoint) -> None:
    greedy = sequence(SamplingParams(temperature=0, seed=1), checkpoint)
    state = greedy.rng.getstate()
    assert sampler.sample(torch.tensor([[0.0, 3.0, 1.0]]), [greedy]) == [1]
    assert greedy.rng.getstate() == state


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_that_are_not_numbers_are_errors_of_their_own(checkpoint: Checkpoint, temperature: float) -> None:
    bad = sequence(SamplingParams(temperature=temperature, seed=1), checkpoint)
    good = sequence(SamplingParams(temperature=0), checkpoint)
    error, token = sampler.sample(torch.tensor([[0.0, math.nan], [0.0, 1.0]]), [bad, good])
    assert "not numbers" in str(error)
    assert token == 1
