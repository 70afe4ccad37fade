"""Mixture of experts in plain torch: top-k routing, and each expert over the tokens that chose it."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor


class Linear(Protocol):
    """A linear layer over a matrix packed in any format."""

    bias: Tensor | None
    own: tuple[int, Any] | None
    """The format's number and the matrix as the CPU's own kernels know it, if they do."""

    def __call__(self, x: Tensor) -> Tensor: ...


class Linears(Protocol):
    """Linear layers of one input; `own` as of `Linear`, None where a layer has a bias or formats differ."""

    own: tuple[int, Any] | None

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]: ...


class Experts(Protocol):
    """A stack of E matrices [out, in], packed in any format."""

    @property
    def own(self) -> tuple[tuple[int, Any], ...] | None:
        """As `Linear.own`: of the stack, or of each half of its rows where these have a format each."""
        ...

    @property
    def shape(self) -> tuple[int, int, int]: ...

    def expert(self, index: int) -> Callable[[Tensor], Tensor]:
        """One expert's linear layer, [n, in] to [n, out], without a copy."""
        ...

    def gather(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """Experts `ids` int64 [n] dequantized: [n, out, in] in `dtype`."""
        ...


def gated_mlp(x: Tensor, gate_up: Linears, down: Linear) -> Tensor:
    """`down(silu(gate x) · up x)`: [T, in] to [T, out] in the dtype of `x`."""
    gate, up = gate_up(x)
    return down(torch.nn.functional.silu(gate) * up)


def route(logits: Tensor, top_k: int, renormalise: bool) -> tuple[Tensor, Tensor]:
    """The `top_k` likeliest experts of each token: weights float32 [T, top_k] and indices int64 [T, top_k].

    Weights are the softmax over all of `logits` [T, E], in float32, divided by the sum of the chosen if `renormalise`.
    """
    weights, experts = torch.topk(logits.float().softmax(-1), top_k, dim=-1)
    return (weights / weights.sum(-1, keepdim=True) if renormalise else weights), experts


def moe(x: Tensor, gate_up: Experts, down: Experts, weights: Tensor, experts: Tensor) -> Tensor:
    """`Σ_e weight_e · down_e(silu(gate_e x) · up_e x)` over each token's experts: float32 [T, hidden].

    `gate_up` has the gate's rows, then the up projection's. Only the chosen experts' weights are read, each once; a
    token's terms are added in the order of expert numbers, whatever else is in the batch.
    """
    chosen, order = experts.flatten().sort(stable=True)
    tokens, scale = order // experts.shape[1], weights.flatten()[order].unsqueeze(-1)
    numbers, counts = torch.unique_consecutive(chosen, return_counts=True)
    output = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    start = 0
    for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
        rows, share = tokens[start : start + count], scale[start : start + count]
        gate, up = gate_up.expert(number)(x[rows]).chunk(2, dim=-1)
        output.index_add_(0, rows, down.expert(number)(torch.nn.functional.silu(gate) * up).float() * share)
        start += count
    return output
