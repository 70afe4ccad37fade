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
from engine.core.request import SamplingParams


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
    result = sampler.distribution(torch.tensor(logits), params)
    ids = range(len(logits)) if result.ids is None else result.ids.tolist()
    shares = (result.probabilities / result.probabilities.sum()).tolist()
    return {token: share for token, share in zip(ids, shares, strict=True) if share > 0}


@settings(max_examples=100, deadline=None)
@given(
    logits=st.lists(st.integers(-128, 128).map(lambda n: n / 16), min_size=2, max_size=40, unique=True),
    temperature=st.floats(0.2, 3),
    top_k=st.integers(0, 50),
    top_p=st.floats(0.05, 1.0),
    min_p=st.floats(0, 0.5),
    candidates=st.integers(1, 50),
)
def test_distribution_equals_the_reference(logits, temperature, top_k, top_p, min_p, candidates) -> None:
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    want = reference(logits, params)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler, "NUCLEUS_CANDIDATES", candidates)
        got = found(logits, params)
    assert sum(abs(got.get(token, 0) - want.get(token, 0)) for token in got.keys() | want.keys()) < 1e-6


def test_draws_follow_the_distribution() -> None:
    params = SamplingParams(temperature=0.7, top_k=5)
    logits = torch.tensor([0.3, 1.0, -0.5, 2.0, 1.5, -3.0, 0.9])
    rng = Random(11)
    counts = Counter(sampler.choose(logits, params, rng) for _ in range(4000))
    shares = reference(logits.tolist(), params)
    assert counts.keys() == shares.keys()
    assert chisquare([counts[t] for t in shares], [4000 * p for p in shares.values()]).pvalue > 1e-3


def test_greedy_takes_the_likeliest_and_draws_nothing() -> None:
    rng = Random(1)
    state = rng.getstate()
    assert sampler.choose(torch.tensor([0.0, 3.0, 1.0]), SamplingParams(temperature=0), rng) == 1
    assert rng.getstate() == state


def test_logits_that_are_not_numbers_are_an_error() -> None:
    with pytest.raises(ValueError, match="not numbers"):
        sampler.choose(torch.tensor([0.0, math.nan]), SamplingParams(), Random(1))
