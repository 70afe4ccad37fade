"""How well a model predicts a text, and how far its predictions are from a reference model's."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.errors import UserError
from engine.llm import LLM


@dataclass(frozen=True)
class Passage:
    """Token ids that are scored together: those whose entry in `counted` is true, but never the first."""

    ids: Sequence[int]
    counted: Sequence[bool]


def perplexity(llm: LLM, text: str, window: int = 1024, reference: LLM | None = None) -> dict[str, Any]:
    """Perplexity of `llm` over `text`, and its divergence from `reference` when there is one.

    The text is cut into windows of `window` tokens; within each, every token but the first is predicted from those
    before it. Beside the figures of `score`, `bits_per_byte` (of the UTF-8 text predicted) and `window`. UserError for
    a text of fewer than two tokens or a reference with another vocabulary.
    """
    ids = llm.tokenizer.encode(text, special=False)
    windows = [Passage(part, [True] * len(part)) for part in _windows(ids, window)]
    if not windows:
        raise UserError("the text has fewer than two tokens; perplexity needs something to predict")
    if reference is not None and reference.tokenizer.encode(text, special=False) != ids:
        raise UserError("the reference has another tokenizer; divergence compares models of one vocabulary")
    figures = score(llm, windows, reference)
    predicted = len(llm.tokenizer.decode([i for part in windows for i in part.ids[1:]], special=True).encode())
    bits = figures["nll"] * figures["tokens"] / math.log(2)
    return figures | {"bits_per_byte": bits / predicted, "window": window}


def score(llm: LLM, passages: Sequence[Passage], reference: LLM | None = None) -> dict[str, Any]:
    """How well `llm` predicts the counted tokens of `passages`.

    `ppl` = exp(mean negative log-likelihood), `nll` (nats per token), `tokens` (counted); with a reference also, per
    token, `kld_mean` and `kld_p99` (Kullback-Leibler divergence of reference || llm, nats), `top1` (share of equal
    likeliest tokens) and `reference_ppl`.
    """
    scores = [_score(llm, reference, passage) for passage in passages]
    losses = torch.cat([loss for loss, _ in scores]).double()
    nll = losses.mean().item()
    result: dict[str, Any] = {"ppl": math.exp(nll), "nll": nll, "tokens": losses.numel()}
    if reference is not None:
        result |= _divergence(torch.cat([part for _, part in scores if part is not None]))
    return result


def _windows(ids: Sequence[int], window: int) -> Iterator[Sequence[int]]:
    if window < 2:
        raise UserError(f"window is {window}; it must be at least 2 tokens")
    for start in range(0, len(ids), window):
        part = ids[start : start + window]
        if len(part) > 1:
            yield part


def _score(llm: LLM, reference: LLM | None, passage: Passage) -> tuple[Tensor, Tensor | None]:
    """Losses [n] in nats of the counted tokens and, with a reference, rows [n, 3] of divergence, agreement and
    reference loss."""
    targets, counted = torch.tensor(passage.ids[1:])[:, None], torch.tensor(passage.counted[1:])
    ours = _log_probabilities(llm, passage.ids)
    losses = -ours.gather(1, targets)[counted, 0]
    if reference is None:
        return losses, None
    theirs = _log_probabilities(reference, passage.ids)
    divergence = (theirs.exp() * (theirs - ours)).sum(-1)
    agreement = (theirs.argmax(-1) == ours.argmax(-1)).float()
    return losses, torch.stack([divergence, agreement, -theirs.gather(1, targets)[:, 0]], dim=1)[counted]


def _log_probabilities(llm: LLM, ids: Sequence[int]) -> Tensor:
    """Over the real vocabulary, without its padding rows: [n - 1, vocab]."""
    return llm.logits(ids)[:-1, : llm.tokenizer.vocab_size].log_softmax(-1)


def _divergence(rows: Tensor) -> dict[str, float]:
    divergence, agreement, losses = rows.double().unbind(1)
    return {
        "kld_mean": divergence.mean().item(),
        "kld_p99": divergence.quantile(0.99).item(),
        "top1": agreement.mean().item(),
        "reference_ppl": math.exp(losses.mean().item()),
    }
