"""What repeats, and what the caller favours: the logits of one sequence adjusted by what it holds already.

The order is repetition penalty, presence and frequency penalty, bias.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.core.request import SamplingParams


class Penalties:
    """Counts one sequence's tokens and adjusts its logits; all tensors live on `device`.

    Presence and frequency: OpenAI's formula `logit - count * frequency - (count > 0) * presence` over generated tokens
    (API reference, "Frequency and presence penalties"). Repetition: Keskar et al. 2019 (CTRL), section 4.1, in the form
    that is defined for negative logits too, over prompt and generated tokens: positive logits are divided by the
    penalty and negative ones multiplied.
    """

    def __init__(
        self, params: SamplingParams, prompt_ids: Sequence[int], vocabulary: int, device: torch.device
    ) -> None:
        self._params = params
        self._counts = torch.zeros(vocabulary, device=device)
        self._seen = torch.zeros(vocabulary, dtype=torch.bool, device=device)
        self._seen[[token for token in set(prompt_ids) if token < vocabulary]] = True
        self._biased = torch.tensor(list(params.logit_bias), dtype=torch.int64, device=device)
        self._bias = torch.tensor(list(params.logit_bias.values()), dtype=torch.float32, device=device)

    @staticmethod
    def wanted(params: SamplingParams) -> bool:
        """Whether `params` change any logit."""
        penalties = (params.presence_penalty, params.frequency_penalty, params.repetition_penalty)
        return penalties != (0, 0, 1) or bool(params.logit_bias)

    def accept(self, tokens: Sequence[int]) -> None:
        """Count the next generated ids."""
        for token in tokens:
            self._counts[token] += 1
            self._seen[token] = True

    def apply(self, logits: Tensor) -> None:
        """Adjust one row of logits float32 [vocab] in place."""
        params = self._params
        if params.repetition_penalty != 1:
            factor = torch.where(logits > 0, 1 / params.repetition_penalty, params.repetition_penalty)
            logits.mul_(torch.where(self._seen, factor, 1.0))
        if params.presence_penalty or params.frequency_penalty:
            logits.sub_(self._counts * params.frequency_penalty + (self._counts > 0) * params.presence_penalty)
        if params.logit_bias:
            logits.index_add_(0, self._biased, self._bias)
