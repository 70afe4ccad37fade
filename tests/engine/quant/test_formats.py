"""Formats: error bounds, bytes held, row lookup, and a linear layer equal to the matmul with unpacked weights."""

from collections.abc import Callable
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import CheckpointError, UserError
from engine.quant import int4
from engine.quant.formats import Packed, TensorClass, check_level, dequantize, join_rows, pack, recipe, repack
from engine.quant.gguf_blocks import BLOCK_TYPES
from engine.quant.linear import PackedExperts, QuantizedLinear, repack_experts, stack_experts

# Bits that a weight of 512 columns and many rows takes, scales included.
BITS = {"f32": 32, "bf16": 16, "f16": 16, "fp8": 8 + 32 / 128**2, "int8": 8 + 16 / 512}
BITS |= {"int4": 4 + 32 / 128, "int3": 3 + 32 / 128, "int2": 2 + 32 / 128}


def normal(out: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(out, columns, generator=torch.Generator().manual_seed(seed))


def error_bound(weight: torch.Tensor, format: str) -> torch.Tensor:
    """Largest error of rounding to nearest, per row [out, 1]: half a step and a bit for scales rounded too."""
    most, span = weight.abs().amax(1, keepdim=True), weight.amax(1, keepdim=True) - weight.amin(1, keepdim=True)
    steps = {
        "f32": 0 * most, "f16": most / 2**10, "bf16": most / 2**7, "fp8": weight.abs().max() / 2**3,
        "int8": most / 127, "int4": 1.15 * span / 15, "int3": 1.05 * span / 7, "int2": 1.05 * span / 3,
    }  # fmt: skip
    return 0.51 * steps[format]


@pytest.mark.parametrize("format", BITS)
def test_round_trip_stays_within_half_a_step(format: str) -> None:
    weight = normal(256, 512)
    packed = pack(weight, format)
    assert ((dequantize(packed) - weight).abs() <= error_bound(weight, format)).all()
    assert packed.nbytes == weight.numel() * BITS[format] / 8
    assert packed.nbytes == sum(t.untyped_storage().nbytes() for t in packed.tensors.values())


def test_zero_rows_stay_zero() -> None:
    for format in BITS:
        assert dequantize(pack(torch.zeros(64, 128), format)).abs().max() == 0


def test_values_of_a_format_survive_exactly() -> None:
    for format in ("int8", "int4", "int3", "int2", "fp8"):
        once = dequantize(pack(normal(128, 256), format))
        torch.testing.assert_close(dequantize(pack(once, format)), once, rtol=0.01, atol=0.02)
        torch.testing.assert_close(dequantize(repack(pack(once, format), "f32")), dequantize(pack(once, format)))


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 12), columns=st.sampled_from([32, 64, 96]), seed=st.integers(0, 9))
def test_codes_come_back_in_row_order(rows: int, columns: int, seed: int) -> None:
    codes = torch.randint(0, 16, (16 * rows, columns), generator=torch.Generator().manual_seed(seed))
    packed = int4.pack_codes(codes)
    ids = torch.randperm(16 * rows)[:7]
    assert torch.equal(int4.unpack_codes(packed), codes.to(torch.uint8))
    assert torch.equal(int4.unpack_codes(packed[ids]), codes[ids].to(torch.uint8))


@pytest.mark.parametrize("format", ["int4", "int3", "int2"])
def test_the_largest_group_that_divides_is_taken(format: str) -> None:
    assert [pack(normal(16, columns), format).group for columns in (512, 576, 96)] == [128, 64, 32]
    with pytest.raises(CheckpointError, match=f"{format} needs .* multiple of 32, not 48"):
        pack(normal(16, 48), format)


@pytest.fixture(scope="session")
def every_format(random_rows: Callable[..., np.ndarray]) -> Callable[[int, int], list[Packed]]:
    """One random matrix [out, columns] in each format and each GGUF block type."""

    def make(out: int, columns: int) -> list[Packed]:
        made = [pack(normal(out, columns), format) for format in BITS]
        for name, kind in BLOCK_TYPES.items():
            rows = torch.from_numpy(random_rows(name, out, columns // max(kind.width, 32)))
            made.append(Packed(name, (out, columns), {"blocks": rows}))
        return made

    return make


EveryFormat = Callable[[int, int], list[Packed]]


@pytest.mark.parametrize("rows", [1, 5, 40, 80])
def test_linear_equals_the_float_matmul(rows: int, every_format: EveryFormat) -> None:
    for packed in every_format(80, 256):
        weight = dequantize(packed)
        layer = QuantizedLinear(packed, bias=normal(1, 80, seed=2)[0])
        x = normal(rows, 256, seed=1)
        exact = x @ weight.t() + layer.bias
        scale = exact.abs().max()
        assert (layer(x) - exact).abs().max() <= 1e-5 * scale, packed.format
        y = layer(x.bfloat16())
        assert y.dtype == torch.bfloat16
        assert (y.float() - exact).abs().max() <= 0.02 * scale, packed.format


def test_many_tiles_equal_one(every_format: EveryFormat, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.quant.formats.TILE_ELEMENTS", 1)
    for packed in every_format(304, 256):
        x = normal(70, 256, seed=1)
        torch.testing.assert_close(
            QuantizedLinear(packed)(x),
            x @ dequantize(packed).t(),
            rtol=1e-4,
            atol=1e-4 * dequantize(packed).abs().max(),
        )
        if packed.format in BITS:
            again = repack(Packed("f32", packed.shape, {"weight": dequantize(packed)}), packed.format)
            whole = pack(dequantize(packed), packed.format)
            assert all(torch.equal(again.tensors[name], whole.tensors[name]) for name in whole.tensors)


def test_row_lookup_equals_unpacked_rows(every_format: EveryFormat) -> None:
    ids = torch.tensor([79, 0, 3, 64, 3])
    for packed in every_format(80, 256):
        torch.testing.assert_close(QuantizedLinear(packed).rows(ids), dequantize(packed)[ids], rtol=0, atol=0)


def test_an_expert_is_a_view() -> None:
    for format in BITS:
        made = [pack(normal(64, 128, seed), format) for seed in range(3)]
        experts = stack_experts(made)
        assert experts.nbytes == sum(packed.nbytes for packed in made)
        for index, packed in enumerate(made):
            view = experts.expert_packed(index)
            assert torch.equal(dequantize(view), dequantize(packed))
            for name, tensor in view.tensors.items():
                assert tensor.untyped_storage().data_ptr() == experts.tensors[name].untyped_storage().data_ptr()


@pytest.mark.parametrize("out", [128, 80])
def test_repacked_experts_equal_experts_packed_alone(out: int) -> None:
    weight = normal(3 * out, 128).reshape(3, out, 128)
    for format in BITS:
        experts = repack_experts(PackedExperts("f32", (3, out, 128), {"weight": weight}), format)
        for index in range(3):
            alone = pack(weight[index], format)
            assert all(torch.equal(experts.tensors[name][index], alone.tensors[name]) for name in alone.tensors)


def test_unlike_row_parts_act_as_one_matrix(every_format: EveryFormat) -> None:
    parts = every_format(80, 256)[3:6]
    weight, x = torch.cat([dequantize(part) for part in parts]), normal(5, 256, seed=1)
    order = torch.randperm(240, generator=torch.Generator().manual_seed(0))
    for chosen, joined in ((weight, join_rows(parts)), (weight[order], join_rows(parts, order))):
        assert torch.equal(dequantize(joined), chosen)
        assert torch.equal(dequantize(repack(joined, "f32")), chosen)
        torch.testing.assert_close(QuantizedLinear(joined)(x), x @ chosen.t(), rtol=1e-4, atol=1e-3)


def test_recipe_spares_what_steers() -> None:
    assert [recipe("int4", kind) for kind in ("linear", "expert", "embedding", "lm_head")] == ["int4"] * 2 + [
        "int8"
    ] * 2
    for kind in get_args(TensorClass):
        assert [recipe("int3", kind), recipe("int2", kind)] == [
            recipe("int4", kind).replace("int4", level) for level in ("int3", "int2")
        ]
    assert {recipe(level, "norm") for level in ("bf16", "fp8", "int8", "int4", "as-stored")} == {"f32"}
    mixed = {kind: recipe("int4-fp8", kind) for kind in get_args(TensorClass)}
    assert mixed == {kind: recipe("fp8", kind) for kind in get_args(TensorClass)} | {"expert": "int4"}
    assert {recipe("int4", kind) for kind in ("router", "shared_expert_gate", "delta_ba")} == {"bf16"}
    with pytest.raises(UserError, match="'int5' is unknown; it is one of f32"):
        check_level("int5")
