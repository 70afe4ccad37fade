"""From logits to the next tokens of a batch. Order: penalties, bias, grammar, temperature, top_k, top_p, min_p.

Every filter keeps the likeliest tokens, so what is left of a row is a prefix of its sorted distribution, and one length
says which. A row is drawn by inverting its cumulative distribution at one uniform number of the sequence's generator.
Each operation works along a row, in an order that does not depend on the number of rows: a request's text follows from
its logits and seed and from nothing else in the batch (softmax, cumsum and topk do so on CPU; sums across rows do not).
"""

import math
from collections.abc import Sequence

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
    chosen: list[int | Exception] = list(tokens.tolist())
    drawn = [row for row, sequence in enumerate(sequences) if sequence.request.params.temperature > 0]
    if drawn:
        uniforms = [sequences[row].rng.random() for row in drawn]
        rows = adjusted if len(drawn) == len(sequences) else adjusted[drawn]
        for row, token in zip(
            drawn, draw(rows, [sequences[row].request.params for row in drawn], uniforms), strict=True
        ):
            chosen[row] = token
    for row in best.isnan().nonzero().flatten().tolist():
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

    All `params` have a temperature above 0. A row without numbers gives a token without meaning.
    """
    temperatures = torch.tensor([[one.temperature] for one in params], dtype=torch.float64, device=logits.device)
    probabilities = (logits.double() / temperatures).softmax(-1)
    tokens = [0] * len(params)
    for rows, (cumulative, ids) in _candidates(probabilities, params):
        target = torch.tensor([[uniforms[row]] for row in rows], dtype=torch.float64, device=logits.device)
        at = torch.searchsorted(cumulative, target * cumulative[:, -1:], right=True)
        at = at.clamp(max=cumulative.shape[1] - 1)
        for row, token in zip(rows, (at if ids is None else ids.gather(1, at)).flatten().tolist(), strict=True):
            tokens[row] = token
    return tokens


def _candidates(
    probabilities: Tensor, params: Sequence[SamplingParams]
) -> list[tuple[list[int], tuple[Tensor, Tensor | None]]]:
    """Rows that are treated alike: their numbers, unnormalised cumulative distributions [rows, K], ids [rows, K].

    `ids` None stands for the whole vocabulary in order.
    """
    sortless = [row for row, one in enumerate(params) if one.top_k <= 0 and one.top_p >= 1]
    groups: list[tuple[list[int], tuple[Tensor, Tensor | None]]] = []
    if sortless:
        groups.append((sortless, (_above_min_p(probabilities[sortless], [params[row] for row in sortless]), None)))
    filtered = [row for row in range(len(params)) if row not in set(sortless)]
    if filtered:
        top, ids = probabilities[filtered].topk(min(CANDIDATES, probabilities.shape[1]))
        cumulative = top.cumsum(-1)
        enough = [_suffices(params[row], mass) for row, mass in zip(filtered, cumulative[:, -1].tolist(), strict=True)]
        enough = [good or top.shape[1] == probabilities.shape[1] for good in enough]
        few = [at for at, good in enumerate(enough) if good]
        many = [row for row, good in zip(filtered, enough, strict=True) if not good]
        if few:
            rows = [filtered[at] for at in few]
            groups.append((rows, (_truncate(top[few], [params[row] for row in rows]), ids[few])))
        if many:
            top, ids = probabilities[many].sort(dim=-1, descending=True, stable=True)
            groups.append((many, (_truncate(top, [params[row] for row in many]), ids)))
    return groups


def _suffices(params: SamplingParams, mass: float) -> bool:
    """Whether the first candidates, of probability `mass` together, hold all that the filters of a row can leave."""
    return 0 < params.top_k <= CANDIDATES or (params.top_k <= 0 and mass >= params.top_p)


def _truncate(top: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """Cumulative probabilities of rows sorted downwards [rows, K], constant from where the filters cut.

    top_k keeps the k likeliest; top_p the smallest set of likeliest tokens with at least that share of what top_k left
    (Holtzman et al. 2020); min_p those with at least that share of the likeliest's probability (Nguyen et al. 2024).
    """
    width = top.shape[1]

    def column(values: list[float], dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=top.device)[:, None]

    counts = column([min(one.top_k, width) if one.top_k > 0 else width for one in params], torch.int64)
    rank = torch.arange(width, device=top.device)
    cumulative = top.cumsum(-1)
    # Without top_k the nucleus is a share of everything, which the candidates at hand may not add up to.
    whole = torch.where(column([one.top_k > 0 for one in params], torch.bool), cumulative.gather(1, counts - 1), 1.0)
    keep = (rank < counts) & (cumulative - top < column([one.top_p for one in params]) * whole)
    keep &= top >= column([one.min_p for one in params]) * top[:, :1]
    return top.where(keep, 0.0).cumsum(-1)


def _above_min_p(probabilities: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """Cumulative probabilities of rows in vocabulary order, without the tokens that min_p leaves out."""
    if any(one.min_p > 0 for one in params):
        shares = torch.tensor([[one.min_p] for one in params], dtype=torch.float64, device=probabilities.device)
        floor = shares * probabilities.max(-1, keepdim=True).values
        probabilities = probabilities.where(probabilities >= floor, 0.0)
    return probabilities.cumsum(-1)


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
