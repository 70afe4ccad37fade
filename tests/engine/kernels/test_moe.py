"""Routing and the experts' sum against their formulas, and which experts' weights are read."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from engine.kernels import cpu, cuda, reference
from engine.kernels.cuda.experts import groups
from engine.kernels.ops import Kernels

FAMILIES = [
    pytest.param(kernels, id=name) for kernels, name in ((reference, "reference"), (cpu, "cpu"), (cuda, "cuda"))
]
EXPERTS, HIDDEN, INNER, TOP = 9, 12, 10, 3


@dataclass
class WatchedExperts:
    """Experts that note each time one of them is taken."""

    weight: Tensor
    taken: list[int] = field(default_factory=list)
    own: None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.weight.shape)

    def gather(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        self.taken += ids.tolist()
        return self.weight[ids].to(dtype)

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
@pytest.mark.parametrize("tokens", [1, 2, 40, 400])
@pytest.mark.parametrize("stack", [1, 3, EXPERTS])
def test_moe_sums_each_tokens_experts_reading_each_once(
    kernels: Kernels, tokens: int, stack: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the families only `cuda` stacks experts; up to its DIRECT_TOKENS it takes one for each choice."""
    monkeypatch.setattr(cuda.experts, "STACK_BYTES", stack * 4 * 2 * INNER * HIDDEN)
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
    chosen = experts.flatten().tolist()
    direct = kernels is cuda and tokens * TOP <= stack
    assert sorted(gate_up.taken) == sorted(down.taken) == sorted(chosen if direct else set(chosen))


def test_groups_hold_few_experts_of_like_size() -> None:
    sizes = [900, 500, 450, 400, 70, 60, 9, 8, 1, 1, 0, 0]
    assert groups(sizes, room=100) == [(0, 2, 900), (2, 4, 450), (4, 6, 70), (6, 10, 9)]
    assert groups(sizes, room=2) == [(0, 2, 900), (2, 4, 450), (4, 6, 70), (6, 8, 9), (8, 10, 1)]
    assert groups([0, 0], room=2) == []
