"""Routing and the experts' sum against their formulas, and which experts' weights are read."""

from collections.abc import Callable
from dataclasses import dataclass, field

import gguf
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from engine.kernels import cpu, cuda, reference
from engine.kernels.cpu.experts import FEW_TOKENS
from engine.kernels.cuda.experts import groups
from engine.kernels.ops import Kernels
from engine.quant.formats import pack
from engine.quant.gguf_blocks import BLOCK_TYPES
from engine.quant.joint import JointLinear
from engine.quant.linear import PackedExperts, QuantizedLinear, join_experts, stack_experts

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


def packed_experts(format: str, rows: int, columns: int) -> PackedExperts:
    """Random experts in a format of ours, a GGUF block type, or `A+B`: halves of rows in two formats."""
    if "+" in format:
        return join_experts([packed_experts(half, rows // 2, columns) for half in format.split("+")])
    if format not in BLOCK_TYPES:
        return stack_experts([pack(torch.randn(rows, columns), format) for _ in range(EXPERTS)])
    kind = gguf.GGMLQuantizationType[format]
    weight = torch.randn(EXPERTS * rows, columns).numpy()
    blocks = torch.from_numpy(gguf.quants.quantize(weight, kind)).view(EXPERTS, rows, -1)
    return PackedExperts(format, (EXPERTS, rows, columns), {"blocks": blocks})


@pytest.mark.parametrize(
    ("upper", "lower"),
    [
        ("f32", "bf16"),
        ("int8", "int4"),
        ("int4", "int8"),
        ("int3", "int2"),
        ("int2", "int3"),
        ("fp8", "fp8"),
        ("Q4_1", "Q8_0"),
        ("Q4_0+Q8_0", "Q4_1"),
    ],
)
@pytest.mark.parametrize("tokens", [1, 5, FEW_TOKENS + 1])
def test_own_experts_equal_the_reference(upper: str, lower: str, tokens: int) -> None:
    """On memory that holds NaN; a token alone gives what it gives among others, bit for bit."""
    torch.manual_seed(0)
    gate_up, down = packed_experts(upper, 2 * 96, 160), packed_experts(lower, 160, 96)
    assert gate_up.own is not None
    assert down.own is not None
    x = torch.randn(tokens, 160)
    logits = torch.randn(tokens, EXPERTS)
    chosen = cpu.route(logits, TOP, True)
    assert torch.equal(chosen[1], reference.route(logits, TOP, True)[1])
    torch.full((tokens, 160), float("nan"))  # freed at once: likely the memory of the result
    got = cpu.moe(x, gate_up, down, *chosen)
    torch.testing.assert_close(got, reference.moe(x, gate_up, down, *chosen), atol=1e-4, rtol=1e-5)
    if tokens <= FEW_TOKENS:
        assert torch.equal(cpu.moe(x[-1:], gate_up, down, chosen[0][-1:], chosen[1][-1:]), got[-1:])


@pytest.mark.parametrize("format", ["int8", "fp8"])
@pytest.mark.parametrize("tokens", [1, 3, 11])
def test_dense_gated_mlp(format: str, tokens: int) -> None:
    torch.manual_seed(0)
    gate, up, down = (QuantizedLinear(pack(torch.randn(*shape), format)) for shape in ((96, 64), (96, 64), (70, 96)))
    x = torch.randn(tokens, 64)
    got = cpu.gated_mlp(x, JointLinear(gate, up), down)
    torch.testing.assert_close(got, down(reference.silu_mul(gate(x), up(x))), atol=1e-4, rtol=1e-5)


def test_groups_hold_few_experts_of_like_size() -> None:
    sizes = [900, 500, 450, 400, 70, 60, 9, 8, 1, 1, 0, 0]
    assert groups(sizes, room=100) == [(0, 2, 900), (2, 4, 450), (4, 6, 70), (6, 10, 9)]
    assert groups(sizes, room=2) == [(0, 2, 900), (2, 4, 450), (4, 6, 70), (6, 8, 9), (8, 10, 1)]
    assert groups([0, 0], room=2) == []
