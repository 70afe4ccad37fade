"""From logits to the next token. Filters apply in the order temperature, top_k, top_p, min_p.

A row is drawn by inverting its cumulative distribution at one uniform number of the request's own generator, so that a
request's text depends on its logits and seed and on nothing else in the batch.
"""

from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from engine.core.request import SamplingParams, TokenLogprob

NUCLEUS_CANDIDATES = 1024
"""Tokens sorted at first for top_p; only a distribution flatter than that is sorted whole."""


@dataclass(frozen=True)
class Distribution:
    """Candidates and their unnormalised probabilities, float64; `ids` None stands for the whole vocabulary in order."""

    probabilities: Tensor
    ids: Tensor | None = None

    def invert(self, uniform: float) -> int:
        """The token at which the cumulative distribution passes `uniform` in [0, 1)."""
        cumulative = self.probabilities.cumsum(0)
        at = int(torch.searchsorted(cumulative, uniform * cumulative[-1], right=True))
        at = min(at, len(cumulative) - 1)
        return at if self.ids is None else int(self.ids[at])


def choose(logits: Tensor, params: SamplingParams, generator: Random) -> int:
    """The next token for `logits` float32 [vocab], padding columns removed; ValueError when they are not numbers."""
    value, token = logits.max(-1)
    if value.isnan():
        raise ValueError("the model's logits are not numbers")
    if params.temperature == 0:
        return int(token)
    return distribution(logits, params).invert(generator.random())


def distribution(logits: Tensor, params: SamplingParams) -> Distribution:
    """What `params` (temperature above 0) leave of one row of logits [vocab].

    top_k keeps the k likeliest; top_p the smallest set of likeliest tokens with at least that probability among what
    top_k left (Holtzman et al. 2020); min_p those with at least that share of the likeliest's (Nguyen et al. 2024).
    """
    scaled = logits.double() / params.temperature
    vocabulary = scaled.shape[0]
    if params.top_k <= 0 and params.top_p >= 1.0:
        return Distribution(_min_p(scaled.softmax(0), params.min_p))
    count = min(params.top_k if params.top_k > 0 else NUCLEUS_CANDIDATES, vocabulary)
    top, ids = scaled.topk(count)
    if params.top_k > 0:
        probabilities = top.softmax(0)
    else:
        probabilities = (top - scaled.logsumexp(0)).exp()
        if count < vocabulary and probabilities.sum() < params.top_p:
            top, ids = scaled.sort(descending=True)
            probabilities = top.softmax(0)
    before = probabilities.cumsum(0) - probabilities
    probabilities = probabilities.where(before < params.top_p, 0.0)
    return Distribution(_min_p(probabilities, params.min_p), ids)


def _min_p(probabilities: Tensor, min_p: float) -> Tensor:
    if min_p <= 0:
        return probabilities
    return probabilities.where(probabilities >= min_p * probabilities.max(), 0.0)


def token_logprob(logits: Tensor, token_id: int, alternatives: int) -> TokenLogprob:
    """Log-probabilities of one row of raw logits [vocab], before temperature and filters."""
    logprobs = logits.log_softmax(-1)
    top: tuple[tuple[int, float], ...] = ()
    if alternatives > 0:
        values, ids = logprobs.topk(min(alternatives, logprobs.shape[-1]))
        top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    return TokenLogprob(token_id, float(logprobs[token_id]), top)
