"""Dynamic FP8 activations: the rounding on any machine, the product where the hardware has it."""

import pytest
import torch

from engine.quant.formats import dequantize, pack
from engine.quant.fp8_dynamic import is_supported, multiply, quantize_activations

HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (9, 0)


def test_each_group_of_128_columns_spans_the_format():
    x = torch.randn(5, 384, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [1e-3, 1.0, 1e3]
    ).repeat_interleave(128)
    x[2, :128] = 0
    codes, scale = quantize_activations(x)
    groups = codes.float().view(5, 3, 128)
    assert scale.shape == (5, 3)
    assert torch.equal(groups[x.view(5, 3, 128).any(-1)].abs().amax(-1), torch.full((14,), 448.0))
    # Three bits of mantissa: half a unit in the last place is 1/16 of a value, and the least step is 2^-9.
    error = (groups * scale.unsqueeze(-1) - x.view(5, 3, 128)).abs()
    assert (error <= x.view(5, 3, 128).abs() / 16 + scale.unsqueeze(-1) * 2.0**-10).all()


def test_is_weight_only_where_the_hardware_cannot():
    assert not is_supported(pack(torch.randn(128, 128), "fp8"))


@pytest.mark.gpu
@pytest.mark.skipif(not HOPPER, reason="no CUDA device of capability 9.0")
@pytest.mark.parametrize("tokens", [1, 7, 8, 300])
def test_product_equals_that_of_the_rounded_operands(tokens):
    weight = torch.randn(384, 512, device="cuda") * 0.05
    x = torch.randn(tokens, 512, device="cuda", dtype=torch.bfloat16)
    packed = pack(weight, "fp8")
    codes, scale = quantize_activations(x)
    rounded = (codes.double().view(tokens, 4, 128) * scale.double().unsqueeze(-1)).view(tokens, 512)
    want = rounded @ dequantize(packed).double().t()
    got = multiply(x, packed)
    assert got.shape == want.shape
    assert ((got.double() - want).norm() / want.norm()).item() < 4e-3
