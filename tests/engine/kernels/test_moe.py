"""Routing and the experts' sum against their formulas, and which experts' weights are read."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from engine.kernels import cpu, reference
from engine.kernels.ops import Kernels

FAMILIES = [pytest.param(reference, id="reference"), pytest.param(cpu, id="cpu")]
EXPERTS, HIDDEN, INNER, TOP = 9, 12, 10, 3


@dataclass
class WatchedExperts:
    """Experts that note each time one of them is taken."""

    weight: Tensor
    taken: list[int] = field(default_factory=list)

    def expert(self, index: int) -> Callable[[Tensor], Tensor]:
        self.taken.append(index)
        return lambda x: F.linear(x, self.weight[index])


@pytest.mark.parametrize("kernels", FAMILIES)
@pytest.mark.parametrize("renormalise", [True, False])
def test_route_takes_the_likeliest(kernels: Kernels, renormalise: bool) -> None:
    torch.manual_seed(0)
    logits = torch.randn(6, EXPERTS) * 3
    weights, experts = kernels.route(logits, TOP, renormalise)
    for row, chosen, got in zip(logits, experts, weights, strict=True):
        best = sorted(range(EXPERTS), key=lambda e: -row[e].item())[:TOP]
        assert chosen.tolist() == best
        share = row.exp()[best] / (row.exp()[best].sum() if renormalise else row.exp().sum())
        torch.testing.assert_close(got, share)


@pytest.mark.parametrize("kernels", FAMILIES)
@pytest.mark.parametrize("tokens", [1, 2, 40])
def test_moe_sums_each_tokens_experts_reading_each_once(kernels: Kernels, tokens: int) -> None:
    torch.manual_seed(tokens)
    x, weights = torch.randn(tokens, HIDDEN), torch.rand(tokens, TOP)
    experts = torch.stack([torch.randperm(EXPERTS - 1)[:TOP] for _ in range(tokens)])
    gate_up = WatchedExperts(torch.randn(EXPERTS, 2 * INNER, HIDDEN))
    down = WatchedExperts(torch.randn(EXPERTS, HIDDEN, INNER))
    want = torch.zeros(tokens, HIDDEN)
    for t in range(tokens):
        for share, e in zip(weights[t], experts[t], strict=True):
            gate, up = (gate_up.weight[e] @ x[t]).split(INNER)
            want[t] += share * (down.weight[e] @ (F.silu(gate) * up))
    torch.testing.assert_close(kernels.moe(x, gate_up, down, weights, experts), want, atol=1e-4, rtol=1e-5)
    assert sorted(gate_up.taken) == sorted(down.taken) == sorted(set(experts.flatten().tolist()))
