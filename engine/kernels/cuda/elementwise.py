"""Norms and activation with few launches."""

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.kernels.reference_delta import DeltaWeights, ungated_step
from engine.kernels.reference_moe import Linear, Linears


def rms_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """See `reference.rms_norm`."""
    return F.rms_norm(x.float(), weight.shape, weight, eps).to(dtype)


def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """See `reference.silu_mul`."""
    return F.silu(gate).mul_(up)


def gated_mlp(x: Tensor, gate_up: Linears, down: Linear) -> Tensor:
    """See `reference_moe.gated_mlp`."""
    return down(silu_mul(*gate_up(x)))


def gated_rms_norm(x: Tensor, gate: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """See `reference_delta.gated_rms_norm`."""
    return F.rms_norm(x.float(), weight.shape, weight, eps).mul_(F.silu(gate.float())).to(dtype)


def delta_net_step(
    qkvz: Tensor, ba: Tensor, weights: DeltaWeights, window: Tensor, state: Tensor, slots: Tensor, dtype: torch.dtype
) -> Tensor:
    """See `reference_delta.delta_net_step`."""
    output, z = ungated_step(qkvz, ba, weights, window, state, slots)
    return gated_rms_norm(output, z, weights.norm, weights.eps, dtype)
