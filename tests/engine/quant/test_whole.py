"""Weights unpacked whole, as a GPU reads them, against `dequantize`; on CPU tensors, called directly."""

from typing import Any

import pytest
import torch

from engine.quant import int4, whole
from engine.quant.formats import Packed, dequantize, join_rows, pack
from engine.quant.gguf_blocks import BLOCK_TYPES
from engine.quant.linear import PackedExperts, join_experts, stack_experts

FORMATS = ["f32", "bf16", "f16", "int8", "int4", "int3", "int2", "fp8"]
SHAPES = [(256, 128), (144, 160)]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def rounded(packed: Packed, dtype: torch.dtype) -> torch.Tensor:
    return dequantize(packed).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("format", FORMATS)
def test_gathered_experts_are_the_dequantized_ones(format: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
    each = [pack(torch.randn(shape), format) for _ in range(4)]
    ids = torch.tensor([3, 0, 3])
    got = stack_experts(each).gather(ids, dtype)
    want = torch.stack([rounded(each[i], dtype) for i in ids.tolist()])
    assert got.dtype == dtype
    torch.testing.assert_close(got, want, rtol=2**-22 if dtype == torch.float32 else 0, atol=1e-7)


@pytest.mark.parametrize("name", ["Q4_0", "Q8_0", "Q4_K", "Q6_K", "Q2_K", "BF16"])
def test_gathered_block_experts_are_the_dequantized_ones(name: str) -> None:
    blocks = blocks_of(name, 5, 8)
    experts = PackedExperts(name, (5, 8, 512), {"blocks": blocks})
    got = experts.gather(torch.tensor([4, 1]), torch.float32)
    want = torch.stack([dequantize(experts.expert_packed(i)) for i in (4, 1)])
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


def blocks_of(name: str, experts: int, rows: int) -> torch.Tensor:
    return torch.randint(0, 64, (experts, rows, BLOCK_TYPES[name].row_bytes(512)), dtype=torch.uint8)


def test_experts_of_unlike_parts_are_gathered() -> None:
    parts = [PackedExperts(name, (5, 8, 512), {"blocks": blocks_of(name, 5, 8)}) for name in ("Q4_0", "Q8_0")]
    joined = join_experts(parts)
    want = torch.stack([dequantize(joined.expert_packed(i)) for i in (2, 2, 0)])
    assert torch.equal(joined.gather(torch.tensor([2, 2, 0]), torch.float32), want)


def test_codes_of_halves_are_looked_up() -> None:
    codes = torch.randint(0, 16, (6, 32))
    packed = int4.pack_halves(codes, 16)
    for dtype in (torch.float32, torch.bfloat16):
        assert torch.equal(int4.centred_halves(packed, dtype, 16), (codes - 8).to(dtype))
        assert torch.equal(int4.centred_halves(packed.view(2, 3, -1), dtype, 16), (codes - 8).to(dtype).view(2, 3, -1))


@pytest.mark.parametrize("tile", [1, 1 << 28])
@pytest.mark.parametrize("format", [*FORMATS, "joined"])
def test_product_is_that_of_the_dequantized_matrix(format: str, tile: int, monkeypatch: Any) -> None:
    monkeypatch.setattr(whole, "WHOLE_BYTES", tile)
    weight, x = torch.randn(400, 160), torch.randn(5, 160)
    if format == "joined":
        order = torch.randperm(400)
        packed = join_rows([pack(weight[:256], "int8"), pack(weight[256:], "bf16")], order)
        assert torch.equal(whole.unpack(packed.format, packed.tensors, torch.float32), dequantize(packed))
        return
    packed = pack(weight, format)
    want = x @ dequantize(packed).t()
    torch.testing.assert_close(whole.multiply(x, packed), want, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(whole.multiply(x.bfloat16(), packed).float(), want, rtol=0.02, atol=0.2)


@pytest.mark.parametrize("format", ["int3", "int2"])
def test_unpacking_asks_for_no_value(format: str) -> None:
    """A captured graph records what runs without the host's knowing a number; tensors that hold none show the same."""
    packed = pack(torch.randn(256, 128), format)
    hollow = {name: tensor.to("meta") for name, tensor in packed.tensors.items()}
    assert whole.unpack(format, hollow, torch.bfloat16).shape == packed.shape
