"""From logits to the next tokens of a batch. Order: penalties, bias, grammar, temperature, top_k, top_p, min_p.

Every filter keeps the likeliest tokens, so what is left of a row is a prefix of its sorted distribution, and one length
says which. A row is drawn by inverting its cumulative distribution at one uniform number of the sequence's generator.
Each operation works along a row, in an order that does not depend on the number of rows: a request's text follows from
its logits and seed and from nothing else in the batch (softmax, cumsum and topk do so on CPU; sums across rows do not).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.core.request import SamplingParams, TokenLogprob
from engine.core.sequence import SequenceState

CANDIDATES = 1024
"""Tokens sorted at first; only rows whose filters leave more are sorted whole."""


def sample(logits: Tensor, sequences: Sequence[SequenceState]) -> list[int | Exception]:
    """The next token of each sequence for `logits` float32 [R, vocab], padding columns removed.

    In place of a token stands the error of a row whose logits are not numbers or whose grammar allows nothing.
    """
    adjusted, errors = adjust(logits, sequences)
    best, tokens = adjusted.max(-1)
    likeliest, unknown = torch.stack((tokens, best.isnan().long())).tolist()
    chosen: list[int | Exception] = list(likeliest)
    drawn = [row for row, sequence in enumerate(sequences) if sequence.request.params.temperature > 0]
    if drawn:
        uniforms = [sequences[row].rng.random() for row in drawn]
        rows = adjusted if len(drawn) == len(sequences) else adjusted[drawn]
        for row, token in zip(
            drawn, draw(rows, [sequences[row].request.params for row in drawn], uniforms), strict=True
        ):
            chosen[row] = token
    for row, is_unknown in enumerate(unknown):
        if is_unknown:
            chosen[row] = ValueError("the model's logits are not numbers")
    return [errors.get(row, token) for row, token in enumerate(chosen)]


def adjust(logits: Tensor, sequences: Sequence[SequenceState]) -> tuple[Tensor, dict[int, Exception]]:
    """Logits with penalties, biases and grammars applied, and the errors of rows where that failed.

    `logits` themselves stay as they are: log-probabilities are reported from them.
    """
    special = [row for row, sequence in enumerate(sequences) if sequence.penalties or sequence.matcher]
    errors: dict[int, Exception] = {}
    if not special:
        return logits, errors
    logits = logits.clone()
    for row in special:
        try:
            _adjust_row(logits[row], sequences[row])
        except Exception as error:
            errors[row] = error
    return logits, errors


def _adjust_row(logits: Tensor, sequence: SequenceState) -> None:
    if sequence.penalties is not None:
        sequence.penalties.apply(logits)
    if sequence.matcher is not None:
        sequence.matcher.apply(logits)


def draw(logits: Tensor, params: Sequence[SamplingParams], uniforms: Sequence[float]) -> list[int]:
    """One token per row of `logits` [R, vocab], at `uniforms` in [0, 1) of the rows' cumulative distributions.

    All `params` have a temperature above 0. A row without numbers gives a token without meaning. What is to be known of
    the rows goes to the device in one transfer, and what it chose comes back in one unless a row must be sorted whole.
    """
    wishes = _Wishes.of(params, uniforms, logits.device)
    probabilities = (logits.double() / wishes.temperatures).softmax(-1)
    filtered = [row for row, one in enumerate(params) if one.top_k > 0 or one.top_p < 1]
    tokens = _from_top(probabilities, wishes, filtered)
    unsorted = [row for row, one in enumerate(params) if one.top_k <= 0 and one.top_p >= 1]
    if unsorted:
        own = wishes.rows(unsorted)
        tokens |= dict(zip(unsorted, _invert(_above_min_p(probabilities[unsorted], own), own).tolist(), strict=True))
    whole = [row for row in filtered if row not in tokens]
    if whole:
        own = wishes.rows(whole)
        top, ids = probabilities[whole].sort(dim=-1, descending=True, stable=True)
        at = _invert(_truncate(top, own), own)
        tokens |= dict(zip(whole, ids.gather(1, at[:, None])[:, 0].tolist(), strict=True))
    return [tokens[row] for row in range(len(params))]


@dataclass(frozen=True)
class _Wishes:
    """Numbers of R rows, float64 [R, 5] on the device: temperature, top_k (0 for all), top_p, min_p, uniform."""

    numbers: Tensor

    @classmethod
    def of(cls, params: Sequence[SamplingParams], uniforms: Sequence[float], device: torch.device) -> "_Wishes":
        listed = [
            (one.temperature, max(one.top_k, 0), one.top_p, one.min_p, uniform)
            for one, uniform in zip(params, uniforms, strict=True)
        ]
        host = torch.tensor(listed, dtype=torch.float64)
        return cls((host.pin_memory() if device.type == "cuda" else host).to(device, non_blocking=True))

    def rows(self, rows: Sequence[int]) -> "_Wishes":
        """Those of some rows, given in rising order."""
        return self if len(rows) == len(self.numbers) else _Wishes(self.numbers[rows])

    @property
    def temperatures(self) -> Tensor:
        return self.numbers[:, 0:1]

    @property
    def top_k(self) -> Tensor:
        return self.numbers[:, 1:2]

    @property
    def top_p(self) -> Tensor:
        return self.numbers[:, 2:3]

    @property
    def min_p(self) -> Tensor:
        return self.numbers[:, 3:4]

    @property
    def uniforms(self) -> Tensor:
        return self.numbers[:, 4:5]


def _from_top(probabilities: Tensor, wishes: _Wishes, rows: Sequence[int]) -> dict[int, int]:
    """The tokens of those of `rows` whose likeliest `CANDIDATES` hold all that their filters can leave."""
    if not rows:
        return {}
    own = wishes.rows(rows)
    chosen = probabilities if len(rows) == len(probabilities) else probabilities[rows]
    top, ids = chosen.topk(min(CANDIDATES, chosen.shape[1]))
    enough = torch.where(own.top_k > 0, own.top_k <= CANDIDATES, top.sum(-1, keepdim=True) >= own.top_p)
    enough |= top.shape[1] == chosen.shape[1]
    at = _invert(_truncate(top, own), own)
    found = torch.cat((ids.gather(1, at[:, None]), enough.long()), dim=1).tolist()
    return {row: token for row, (token, good) in zip(rows, found, strict=True) if good}


def _invert(cumulative: Tensor, wishes: _Wishes) -> Tensor:
    """Where each row of cumulative probabilities [R, K], not normalised, passes its uniform number: int64 [R]."""
    at = torch.searchsorted(cumulative, wishes.uniforms * cumulative[:, -1:], right=True)
    return at.clamp(max=cumulative.shape[1] - 1)[:, 0]


def _truncate(top: Tensor, wishes: _Wishes) -> Tensor:
    """Cumulative probabilities of rows sorted downwards [R, K], constant from where the filters cut.

    top_k keeps the k likeliest; top_p the smallest set of likeliest tokens with at least that share of what top_k left
    (Holtzman et al. 2020); min_p those with at least that share of the likeliest's probability (Nguyen et al. 2024).
    """
    width = top.shape[1]
    limited = wishes.top_k > 0
    counts = torch.where(limited, wishes.top_k.clamp(max=width), width).long()
    rank = torch.arange(width, device=top.device)
    cumulative = top.cumsum(-1)
    # Without top_k the nucleus is a share of everything, which the candidates at hand may not add up to.
    whole = torch.where(limited, cumulative.gather(1, counts - 1), 1.0)
    keep = (rank < counts) & (cumulative - top < wishes.top_p * whole)
    keep &= top >= wishes.min_p * top[:, :1]
    return top.where(keep, 0.0).cumsum(-1)


def _above_min_p(probabilities: Tensor, wishes: _Wishes) -> Tensor:
    """Cumulative probabilities of rows in vocabulary order, without the tokens that min_p leaves out."""
    floor = wishes.min_p * probabilities.max(-1, keepdim=True).values
    return probabilities.where(probabilities >= floor, 0.0).cumsum(-1)


def token_logprob(logits: Tensor, token_id: int, alternatives: int) -> TokenLogprob:
    """Log-probabilities of one row of the model's own logits [vocab], before everything that this module applies."""
    logprobs = logits.log_softmax(-1)
    top: tuple[tuple[int, float], ...] = ()
    if alternatives > 0:
        values, ids = logprobs.topk(min(alternatives, logprobs.shape[-1]))
        top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    # A prompt may hold ids of padding rows.
    own = float(logprobs[token_id]) if token_id < len(logprobs) else -math.inf
    return TokenLogprob(token_id, own, top)
