"""From logits to the next tokens of a batch. Order: penalties, bias, grammar, temperature, top_k, top_p, min_p.

Every filter keeps the likeliest tokens, so what is left of a row is a prefix of its sorted distribution, and one length
says which. A row is drawn by inverting its cumulative distribution at one uniform number of the sequence's generator.
Each operation works along a row, in an order that does not depend on the number of rows: a request's text follows from
its logits and seed and from nothing else in the batch (softmax, cumsum and topk do so on CPU; sums across rows do not).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from engine.core.request import SamplingParams, TokenLogprob
from engine.core.sequence import Chunk, SequenceState

CANDIDATES = 1024
"""Tokens sorted at first; only rows whose filters leave more are sorted whole."""

WISHES = 5
"""Numbers that say how a row is drawn: temperature (0: greedily), top_k (0 for all), top_p, min_p, uniform."""


class Way(IntEnum):
    """How much `choose` has to compute for the most demanding row of a batch."""

    GREEDY = 0
    FILTERED = 1
    WHOLE = 2


class Verdict(IntEnum):
    """What `choose` found of a row: a token, logits that are not numbers, or more candidates than it sorts."""

    CHOSEN = 0
    UNKNOWN = 1
    UNDECIDED = 2


NOT_NUMBERS = "the model's logits are not numbers"


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
            chosen[row] = ValueError(NOT_NUMBERS)
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
    known = _Wishes.of(params, uniforms, logits.device)
    probabilities = (logits.double() / known.temperatures).softmax(-1)
    filtered = [row for row, one in enumerate(params) if way(one) == Way.FILTERED]
    tokens = _from_top(probabilities, known, filtered)
    unsorted = [row for row, one in enumerate(params) if way(one) == Way.WHOLE]
    if unsorted:
        own = known.rows(unsorted)
        tokens |= dict(zip(unsorted, _invert(_above_min_p(probabilities[unsorted], own), own).tolist(), strict=True))
    whole = [row for row in filtered if row not in tokens]
    if whole:
        own = known.rows(whole)
        top, ids = probabilities[whole].sort(dim=-1, descending=True, stable=True)
        at = _invert(_truncate(top, own), own)
        tokens |= dict(zip(whole, ids.gather(1, at[:, None])[:, 0].tolist(), strict=True))
    return [tokens[row] for row in range(len(params))]


def way(params: SamplingParams) -> Way:
    """What a row with these settings asks of `choose`."""
    if params.temperature <= 0:
        return Way.GREEDY
    return Way.FILTERED if params.top_k > 0 or params.top_p < 1 else Way.WHOLE


def is_always_decided(params: SamplingParams) -> bool:
    """Whether `choose` finds a token whatever the logits: a nucleus alone may hold more than it sorts."""
    return way(params) != Way.FILTERED or 0 < params.top_k <= CANDIDATES


def wishes(params: SamplingParams, uniform: float) -> tuple[float, ...]:
    """A row of `choose`'s numbers, `WISHES` of them."""
    return params.temperature, max(params.top_k, 0), params.top_p, params.min_p, uniform


def choose(logits: Tensor, numbers: Tensor, most: Way) -> tuple[Tensor, Tensor]:
    """`sample` of rows without penalties, bias and grammar, on the device alone, as a CUDA graph can hold it.

    For `logits` [R, vocab] and `numbers` float64 [R, WISHES] of ways up to `most`: token ids int64 [R], valid ones
    whatever the verdict, and a `Verdict` int32 [R] for each. Rows that are chosen have the token that `sample` gives.
    """
    best, likeliest = logits.max(-1)
    verdicts = best.isnan().int() * Verdict.UNKNOWN
    if most == Way.GREEDY:
        return likeliest, verdicts
    own = _Wishes(numbers)
    drawn = own.temperatures > 0
    probabilities = (logits.double() / own.temperatures.masked_fill(~drawn, 1.0)).softmax(-1)
    tokens, enough = _top_tokens(probabilities, own)
    if most == Way.WHOLE:
        whole = (own.top_k <= 0) & (own.top_p >= 1)
        tokens = torch.where(whole[:, 0], _invert(_above_min_p(probabilities, own), own), tokens)
        enough |= whole
    undecided = (drawn & ~enough)[:, 0] & ~best.isnan()
    return torch.where(drawn[:, 0], tokens, likeliest), verdicts.masked_fill(undecided, Verdict.UNDECIDED)


@dataclass(frozen=True)
class _Wishes:
    """Numbers of R rows, float64 [R, WISHES] on the device, and what they stand for."""

    numbers: Tensor

    @classmethod
    def of(cls, params: Sequence[SamplingParams], uniforms: Sequence[float], device: torch.device) -> "_Wishes":
        listed = [wishes(one, uniform) for one, uniform in zip(params, uniforms, strict=True)]
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


def _from_top(probabilities: Tensor, known: _Wishes, rows: Sequence[int]) -> dict[int, int]:
    """The tokens of those of `rows` whose likeliest `CANDIDATES` hold all that their filters can leave."""
    if not rows:
        return {}
    chosen = probabilities if len(rows) == len(probabilities) else probabilities[rows]
    tokens, enough = _top_tokens(chosen, known.rows(rows))
    found = torch.cat((tokens[:, None], enough.long()), dim=1).tolist()
    return {row: token for row, (token, good) in zip(rows, found, strict=True) if good}


def _top_tokens(probabilities: Tensor, own: _Wishes) -> tuple[Tensor, Tensor]:
    """A token of the likeliest `CANDIDATES` for each row, int64 [R], and whether these are enough, bool [R, 1]."""
    top, ids = probabilities.topk(min(CANDIDATES, probabilities.shape[1]))
    enough = torch.where(own.top_k > 0, own.top_k <= CANDIDATES, top.sum(-1, keepdim=True) >= own.top_p)
    if top.shape[1] == probabilities.shape[1]:
        enough = torch.ones_like(enough)
    at = _invert(_truncate(top, own), own)
    return ids.gather(1, at[:, None])[:, 0], enough


def _invert(cumulative: Tensor, own: _Wishes) -> Tensor:
    """Where each row of cumulative probabilities [R, K], not normalised, passes its uniform number: int64 [R]."""
    at = torch.searchsorted(cumulative, own.uniforms * cumulative[:, -1:], right=True)
    return at.clamp(max=cumulative.shape[1] - 1)[:, 0]


def _truncate(top: Tensor, own: _Wishes) -> Tensor:
    """Cumulative probabilities of rows sorted downwards [R, K], constant from where the filters cut.

    top_k keeps the k likeliest; top_p the smallest set of likeliest tokens with at least that share of what top_k left
    (Holtzman et al. 2020); min_p those with at least that share of the likeliest's probability (Nguyen et al. 2024).
    """
    width = top.shape[1]
    limited = own.top_k > 0
    counts = own.top_k.clamp(max=width).masked_fill(~limited, width).long()
    rank = torch.arange(width, device=top.device)
    cumulative = top.cumsum(-1)
    # Without top_k the nucleus is a share of everything, which the candidates at hand may not add up to.
    whole = cumulative.gather(1, counts - 1).masked_fill(~limited, 1.0)
    keep = (rank < counts) & (cumulative - top < own.top_p * whole)
    keep &= top >= own.min_p * top[:, :1]
    return top.masked_fill(~keep, 0.0).cumsum(-1)


def _above_min_p(probabilities: Tensor, own: _Wishes) -> Tensor:
    """Cumulative probabilities of rows in vocabulary order, without the tokens that min_p leaves out."""
    floor = own.min_p * probabilities.max(-1, keepdim=True).values
    return probabilities.masked_fill(probabilities < floor, 0.0).cumsum(-1)


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


def score_prompt(chunk: Chunk, logits: Tensor) -> None:
    """Note the log-probability of each prompt token that follows a row of `logits` [chunk.tokens, vocab]."""
    sequence = chunk.sequence
    alternatives = sequence.request.params.prompt_logprobs or 0
    for row, position in enumerate(range(chunk.start + 1, min(chunk.start + chunk.tokens + 1, sequence.prompt_tokens))):
        sequence.scored[position] = token_logprob(logits[row], sequence.token_ids[position], alternatives)
