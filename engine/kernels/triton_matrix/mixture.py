"""Mixture of experts in three regimes: by choice, by expert, and by tiles of many tokens."""

import torch
from torch import Tensor

from engine.kernels.cuda import experts as portable
from engine.kernels.reference_moe import Experts
from engine.kernels.triton_matrix import experts as few
from engine.kernels.triton_matrix import grouped as many
from engine.kernels.triton_matrix.experts import ExpertStack
from engine.kernels.triton_matrix.operands import halves, operands

FEW_TOKENS = 256
"""Tokens up to which most of an expert's tile of 16 stays empty, so that wider tiles gain nothing."""


def moe(x: Tensor, gate_up: Experts, down: Experts, weights: Tensor, experts: Tensor) -> Tensor:
    """See `reference_moe.moe`; formats and dtypes that the kernels do not know go the portable way."""
    stack = expert_stack(gate_up, down)
    if stack is None or x.dtype != torch.bfloat16:
        return portable.moe(x, gate_up, down, weights, experts)
    return moe_of_stack(x, stack, weights, experts, None)


def expert_stack(
    gate_up: object, down: object, shared_gate_up: object = None, shared_down: object = None
) -> ExpertStack | None:
    """What `moe_of_stack` multiplies by; None where the kernels cannot.

    Arguments are `operands.Stored`: stacks [E, 2·N, K] and [E, K, N], and the shared expert's [2·N, K] and [K, N] if it
    is to take part, which it can in the experts' own shape and format.
    """
    parts, own_down = halves(gate_up), operands(down)
    if parts is not None and own_down is not None and shared_gate_up is None and shared_down is None:
        return ExpertStack(parts[0], own_down, up=parts[1])
    matrices = [operands(stored) for stored in (gate_up, down)]
    shared = [operands(stored) for stored in (shared_gate_up, shared_down) if stored is not None]
    known = [matrix for matrix in matrices + shared if matrix is not None]
    if len(known) != 2 + len(shared):
        return None
    kinds = [(one.format, one.out, one.columns, one.step) for one in known]
    if kinds[2:] not in ([], kinds[:2]):
        return None
    return ExpertStack(*known)


def moe_of_stack(
    x: Tensor, stack: ExpertStack, weights: Tensor, experts: Tensor, shared_logit: Tensor | None
) -> Tensor:
    """Float32 [T, hidden]: `reference_moe.moe`, plus `sigmoid(shared_logit)` [T] times the shared expert.

    x is bfloat16.
    """
    run = few.moe if x.shape[0] <= FEW_TOKENS else many.moe
    return run(x.contiguous(), stack, weights, experts, shared_logit)
