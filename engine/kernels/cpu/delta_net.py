"""DeltaNet on CPU: states are changed where they lie, and the convolution stays within the processor's cache."""

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.kernels import reference_delta
from engine.kernels.reference_delta import RunPlan, advance

TOKEN_TILE = 64
"""Tokens convolved at once: 2 MiB of float32 at 8192 channels."""


def causal_conv(x: Tensor, weight: Tensor, window: Tensor, plan: RunPlan) -> Tensor:
    """See `reference_delta.causal_conv`."""
    taps, output, start = weight.float().t(), torch.empty_like(x), 0
    for slot, tokens in zip(plan.slots.tolist(), plan.lens, strict=True):
        known = torch.cat((window[slot].t().to(x.dtype), x[start : start + tokens]))
        for first in range(0, tokens, TOKEN_TILE):
            size = min(TOKEN_TILE, tokens - first)
            output[start + first : start + first + size] = _convolve(known[first:], taps, size)
        window[slot] = known[tokens:].t()
        start += tokens
    return output


def _convolve(known: Tensor, taps: Tensor, size: int) -> Tensor:
    known = known[: size + taps.shape[0] - 1].float()
    mixed = known[:size] * taps[0]
    for tap in range(1, taps.shape[0]):
        mixed.addcmul_(known[tap : tap + size], taps[tap])
    return F.silu(mixed, inplace=True)


def delta_rule_step(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor, slots: Tensor) -> Tensor:
    """See `reference_delta.delta_rule_step`; float32 states whose slots adjoin are not copied out and back."""
    places = slots.tolist()
    if state.dtype != torch.float32 or places != list(range(places[0], places[0] + len(places))):
        return reference_delta.delta_rule_step(q, k, v, g, beta, state, slots)
    memory = state[places[0] : places[0] + len(places)]
    return advance(memory.view(len(places), k.shape[1], -1, *state.shape[2:]), q, k, v, g, beta)
