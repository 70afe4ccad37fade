"""Optimizers: Muon for the matrices between layers, AdamW for the rest.

Muon (K. Jordan et al. 2024, kellerjordan.github.io/posts/muon) moves a matrix by its momentum made nearly orthogonal,
so that all directions of a product learn at one speed.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

QUINTIC = (3.4445, -4.7750, 2.0315)
"""Of the Newton-Schulz step X ← aX + b(XX')X + c(XX')²X; chosen there to lift small singular values fastest."""
_MATRICES = ("_proj.weight", "experts.gate_up_proj", "experts.down_proj", "in_proj_qkvz.weight")


@torch.no_grad()
def orthogonalise(x: Tensor, steps: int = 5) -> Tensor:
    """Matrices [n, r, c] with singular values brought near 1 (0.7 to 1.2), in the dtype of `x`; zeros stay zeros."""
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = QUINTIC
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.mT if tall else x


def is_matrix(name: str) -> bool:
    """Whether Muon trains this parameter: the projections, but for DeltaNet's gates b and a, a row for each head."""
    return name.endswith(_MATRICES)


def as_matrices(name: str, values: Tensor) -> Tensor:
    """A parameter as the matrices [n, r, c] it is made of: one per expert, and gate and up apart."""
    if name.endswith("gate_up_proj"):
        return values.reshape(2 * values.shape[0], -1, values.shape[2])
    return values if values.ndim == 3 else values.unsqueeze(0)


@dataclass
class _Stack:
    """Parameters made of matrices of one shape, whose momenta lie in one tensor [n, r, c]."""

    names: list[str]
    parameters: list[Tensor]
    momentum: Tensor


class Muon:
    """Nesterov momentum, orthogonalised; each matrix moves by `rate · max(1, r / c)^0.5` in spectral norm."""

    def __init__(self, named: Iterable[tuple[str, nn.Parameter]], momentum: float, weight_decay: float) -> None:
        self.momentum, self.weight_decay = momentum, weight_decay
        shapes: dict[tuple[int, ...], list[tuple[str, nn.Parameter]]] = {}
        for name, parameter in named:
            shapes.setdefault(tuple(as_matrices(name, parameter).shape[1:]), []).append((name, parameter))
        self.stacks = [_stack(members) for members in shapes.values()]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """One update from the parameters' gradients."""
        for stack in self.stacks:
            grads = torch.cat([as_matrices(n, _grad(p)) for n, p in zip(stack.names, stack.parameters, strict=True)])
            stack.momentum.lerp_(grads, 1 - self.momentum)
            update = grads.lerp_(stack.momentum, self.momentum)
            low = update.bfloat16() if update.is_cuda else update
            update = orthogonalise(low).float() * max(1.0, update.shape[-2] / update.shape[-1]) ** 0.5
            torch._foreach_mul_(stack.parameters, 1 - rate * self.weight_decay)
            sizes = [as_matrices(n, p).shape[0] for n, p in zip(stack.names, stack.parameters, strict=True)]
            parts = [
                part.reshape(p.shape) for part, p in zip(torch.split(update, sizes), stack.parameters, strict=True)
            ]
            torch._foreach_add_(stack.parameters, parts, alpha=-rate)

    def state_dict(self) -> dict[str, Tensor]:
        return {",".join(stack.names): stack.momentum for stack in self.stacks}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for stack in self.stacks:
            stack.momentum.copy_(state[",".join(stack.names)])


def _stack(members: Sequence[tuple[str, nn.Parameter]]) -> _Stack:
    momentum = torch.cat([torch.zeros_like(as_matrices(name, parameter.data)) for name, parameter in members])
    return _Stack([name for name, _ in members], [parameter for _, parameter in members], momentum)


def _grad(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


@dataclass(frozen=True)
class Rates:
    """Peak learning rates. In 70 steps of a small model, lower ones of AdamW learned much less, and Muon's from 0.01 to
    0.04 made little difference."""

    muon: float = 0.02
    embedding: float = 0.02
    head: float = 0.008
    rest: float = 0.006


class Optimizers:
    """Both optimizers over a model; a step whose gradients are not finite counts as one of zero gradients."""

    def __init__(self, model: nn.Module, rates: Rates, clip: float = 1.0) -> None:
        self.rates, self.clip = rates, clip
        named = list(model.named_parameters())
        self.parameters = [parameter for _, parameter in named]
        self.muon = Muon([pair for pair in named if is_matrix(pair[0])], momentum=0.95, weight_decay=0.01)
        groups: dict[float, list[nn.Parameter]] = {}
        for name, parameter in named:
            if not is_matrix(name):
                groups.setdefault(_adam_rate(name, rates), []).append(parameter)
        listed: list[dict[str, Any]] = [{"params": members, "lr": rate} for rate, members in groups.items()]
        fused = self.parameters[0].is_cuda
        self.adam = torch.optim.AdamW(listed, betas=(0.9, 0.95), eps=1e-10, weight_decay=0.0, fused=fused)
        self.peaks = list(groups)

    def step(self, scale: float) -> Tensor:
        """Update all parameters at `scale` of the peak rates and forget the gradients; their norm, on the device."""
        grads = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads)
        factor = torch.where(norm.isfinite(), (self.clip / (norm + 1e-6)).clamp(max=1.0), 0.0)
        for grad in grads:
            grad.nan_to_num_(0.0, 0.0, 0.0)
        torch._foreach_mul_(grads, factor)
        for group, peak in zip(self.adam.param_groups, self.peaks, strict=True):
            group["lr"] = peak * scale
        self.adam.step()
        self.muon.step(self.rates.muon * scale)
        self.adam.zero_grad(set_to_none=True)
        for parameter in self.parameters:
            parameter.grad = None
        return norm

    def state_dict(self) -> dict[str, Any]:
        return {"adam": self.adam.state_dict(), "muon": self.muon.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.adam.load_state_dict(state["adam"])
        self.muon.load_state_dict(state["muon"])


def _adam_rate(name: str, rates: Rates) -> float:
    if "embed_tokens" in name:
        return rates.embedding
    return rates.head if "lm_head" in name else rates.rest
