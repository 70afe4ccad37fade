"""Codes of 4, 3 and 2 bits: their places against a string of bits, their values against a formula in float64."""

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.quant.formats import Packed, dequantize, pack
from engine.quant.grouped_int import (
    BITS,
    centred,
    matrix_bytes,
    pack_codes,
    pack_row_order,
    unpack_codes,
    unpack_row_order,
)
from engine.weights.packed import from_stored, to_stored

FORMATS = sorted(BITS)


def row_codes(row: bytes, bits: int) -> list[int]:
    """A row's codes, lowest bits first, as one long number has them."""
    number = int.from_bytes(row, "little")
    return [number >> bits * index & (1 << bits) - 1 for index in range(8 * len(row) // bits)]


def levels(packed: Packed) -> np.ndarray:
    """What each weight could be, float64 [out, in, 2^bits], from the scales and zeros alone."""
    scale, zero = packed.tensors["scales_zeros"].double().permute(1, 0, 2).unbind(-1)
    bits = BITS[packed.format]
    each = (torch.arange(1 << bits).double() - (1 << bits - 1)) * scale.unsqueeze(-1) + zero.unsqueeze(-1)
    return each.repeat_interleave(packed.group, dim=1).numpy()


@settings(max_examples=60, deadline=None)
@given(bits=st.sampled_from([2, 3, 4]), rows=st.integers(1, 5), eights=st.integers(1, 12), seed=st.integers(0, 1 << 16))
def test_row_order_is_a_string_of_bits(bits: int, rows: int, eights: int, seed: int) -> None:
    codes = torch.randint(0, 1 << bits, (rows, 8 * eights), generator=torch.Generator().manual_seed(seed))
    packed = pack_row_order(codes, bits)
    assert (packed.dtype, packed.shape) == (torch.uint8, (rows, bits * eights))
    assert [row_codes(bytes(row.tolist()), bits) for row in packed] == codes.tolist()
    assert torch.equal(unpack_row_order(packed, bits), codes.to(torch.uint8))


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_codes_in_memory_come_back_from_stacks_too(bits: int) -> None:
    codes = torch.randint(0, 1 << bits, (6, 96), generator=torch.Generator().manual_seed(bits))
    packed = pack_codes(codes, bits)
    assert torch.equal(unpack_codes(packed.view(2, 3, -1), bits), codes.to(torch.uint8).view(2, 3, -1))
    for dtype in (torch.float32, torch.bfloat16):
        assert torch.equal(centred(packed, dtype, bits), (codes - (1 << bits - 1)).to(dtype))


@pytest.mark.parametrize("columns", [96, 192, 256])
@pytest.mark.parametrize("format", FORMATS)
def test_each_weight_becomes_the_nearest_value_of_its_group(format: str, columns: int) -> None:
    weight = torch.randn(40, columns, generator=torch.Generator().manual_seed(columns)) * 0.05 + 0.01
    packed = pack(weight, format)
    _, stored = to_stored(packed)
    codes = np.array([row_codes(bytes(row.tolist()), BITS[format]) for row in stored["codes"]])
    possible = levels(packed)
    values = np.take_along_axis(possible, codes[..., None], axis=2)[..., 0]
    assert np.abs(dequantize(packed).double().numpy() - values).max() <= 1e-7
    error, least = (
        np.abs(weight.double().numpy() - values),
        np.abs(possible - weight.double().numpy()[..., None]).min(2),
    )
    assert (error <= least + 1e-7).all()
    spans = weight.view(40, -1, packed.group).aminmax(dim=2)
    steps = (spans.max - spans.min).double().numpy() / ((1 << BITS[format]) - 1)
    assert (error.reshape(40, -1, packed.group).max(2) <= 0.55 * steps).all()
    assert packed.nbytes == matrix_bytes(format, 40, columns)


@pytest.mark.parametrize("format", ["int3", "int2"])
def test_memory_and_files_have_the_same_bytes(format: str) -> None:
    packed = pack(torch.randn(16, 128, generator=torch.Generator().manual_seed(0)), format)
    entry, stored = to_stored(packed)
    assert torch.equal(stored["codes"], packed.tensors["codes"])
    again = from_stored(format, (16, 128), dict(stored), entry["group"])
    assert isinstance(again, Packed)
    assert torch.equal(dequantize(again), dequantize(packed))


@pytest.mark.parametrize(
    ("rows", "columns", "memory", "file"),
    [
        (48, 256, "54e51934eccf7b35", "ff1225fcca4c5058"),
        (32, 192, "3ac9deb40a5f6074", "75739d5f0a4d2870"),
        (16, 96, "18a74eec7129e111", "8030042b0cdbc86c"),
    ],
)
def test_int4_packs_as_it_always_did(rows: int, columns: int, memory: str, file: str) -> None:
    """Digests taken before int3 and int2 came to share int4's code: checkpoints written earlier keep their meaning."""
    numbers = ((torch.arange(rows * columns) * 7919 + 13) % 1009 - 504).reshape(rows, columns)
    packed = pack(numbers / 64 * (1 + torch.arange(rows).unsqueeze(1) / 8), "int4")
    assert [digest(packed.tensors), digest(to_stored(packed)[1])] == [memory, file]


def digest(tensors: dict[str, torch.Tensor]) -> str:
    hashed = hashlib.sha256()
    for name in sorted(tensors):
        hashed.update(name.encode() + tensors[name].contiguous().view(torch.uint8).numpy().tobytes())
    return hashed.hexdigest()[:16]
