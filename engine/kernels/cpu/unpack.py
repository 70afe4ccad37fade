"""Packed weights to floats: 32 consecutive weights of a row as two vectors of 16, each exactly the dequantized weight.

A row is known by the addresses of its codes and of its first group's scale, where these lie apart, by the bytes from
one group's scale to the next one's, and by the logarithm of a group's units of 32 weights. Layouts of blocks are those
of the ggml specification (ggml-common.h, "block_*" structures), as in `engine.quant.gguf_blocks`; int8, int4,
int3, int2 and fp8 are as `engine.quant.formats.Packed` describes them.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numba.core import types
from numba.extending import overload

from engine.kernels.cpu.bit_fields import load_three_bits, load_two_bits
from engine.kernels.cpu.compiler import jit
from engine.kernels.cpu.simd import (
    bfloat_at,
    byte_at,
    e4m3_to_floats,
    float_at,
    fma,
    half_of_four,
    load,
    load_bfloats,
    load_bytes,
    load_halves,
    load_signed,
    merge_bits,
    multiply,
    shift_mask,
    splat,
    to_floats,
)

F32, F16, Q4_0, Q4_1, Q8_0, Q4_K, Q5_K, Q6_K, BF16 = 0, 1, 2, 3, 8, 12, 13, 14, 30
"""The formats by their numbers in a GGUF file."""
INT8, INT4, INT3, INT2, FP8 = 108, 104, 103, 102, 208
"""Our own formats, which no GGUF file numbers."""


@jit
def _f32(row: Any, unit: int) -> Any:
    at = row[0] + 128 * unit
    return load(at), load(at + 64)


@jit
def _f16(row: Any, unit: int) -> Any:
    at = row[0] + 64 * unit
    return load_halves(at), load_halves(at + 32)


@jit
def _bf16(row: Any, unit: int) -> Any:
    at = row[0] + 64 * unit
    return load_bfloats(at), load_bfloats(at + 32)


@jit
def _q4_0(row: Any, unit: int) -> Any:
    at = row[0] + 18 * unit
    scale, codes = half_of_four(at, 0), load_bytes(at + 2)
    return _affine(codes, scale, np.float32(-8) * scale)


@jit
def _q4_1(row: Any, unit: int) -> Any:
    at = row[0] + 20 * unit
    return _affine(load_bytes(at + 4), half_of_four(at, 0), half_of_four(at, 1))


@jit
def _affine(codes: Any, scale: float, least: float) -> Any:
    """Low and high nibbles of 16 bytes times `scale` plus `least`."""
    step, offset = splat(scale), splat(least)
    low, high = shift_mask(codes, 0, 15), shift_mask(codes, 4, 15)
    return fma(to_floats(low), step, offset), fma(to_floats(high), step, offset)


@jit
def _q8_0(row: Any, unit: int) -> Any:
    at = row[0] + 34 * unit
    step = splat(half_of_four(at, 0))
    return multiply(load_signed(at + 2), step), multiply(load_signed(at + 18), step)


@jit
def _six_bits(at: int, part: int) -> Any:
    """Scale and minimum of sub-block `part` of 8 from the 12 bytes at `at`."""
    if part < 4:
        return np.float32(byte_at(at + part) & 63), np.float32(byte_at(at + 4 + part) & 63)
    mixed, first, second = byte_at(at + 4 + part), byte_at(at + part - 4), byte_at(at + part)
    return np.float32((mixed & 15) | ((first >> 2) & 48)), np.float32((mixed >> 4) | ((second >> 2) & 48))


@jit
def _q4_k(row: Any, unit: int) -> Any:
    at, part = row[0] + 144 * (unit >> 3), unit & 7
    scale, least = _six_bits(at + 4, part)
    step, offset = splat(half_of_four(at, 0) * scale), splat(-half_of_four(at, 1) * least)
    codes, shift = at + 16 + 32 * (part >> 1), np.uint8(4 * (part & 1))
    first, second = shift_mask(load_bytes(codes), shift, 15), shift_mask(load_bytes(codes + 16), shift, 15)
    return fma(to_floats(first), step, offset), fma(to_floats(second), step, offset)


@jit
def _q5_k(row: Any, unit: int) -> Any:
    at, part = row[0] + 176 * (unit >> 3), unit & 7
    scale, least = _six_bits(at + 4, part)
    step, offset = splat(half_of_four(at, 0) * scale), splat(-half_of_four(at, 1) * least)
    codes, shift = at + 48 + 32 * (part >> 1), np.uint8(4 * (part & 1))
    first, second = shift_mask(load_bytes(codes), shift, 15), shift_mask(load_bytes(codes + 16), shift, 15)
    bit = np.uint8(part)
    first = merge_bits(first, shift_mask(load_bytes(at + 16), bit, 1), 4)
    second = merge_bits(second, shift_mask(load_bytes(at + 32), bit, 1), 4)
    return fma(to_floats(first), step, offset), fma(to_floats(second), step, offset)


@jit
def _q6_k(row: Any, unit: int) -> Any:
    at, half, part = row[0] + 210 * (unit >> 3), (unit >> 2) & 1, unit & 3
    low, shift = at + 64 * half + 32 * (part & 1), np.uint8(4 * (part >> 1))
    high, place = at + 128 + 32 * half, np.uint8(2 * part)
    first = merge_bits(shift_mask(load_bytes(low), shift, 15), shift_mask(load_bytes(high), place, 3), 4)
    second = merge_bits(shift_mask(load_bytes(low + 16), shift, 15), shift_mask(load_bytes(high + 16), place, 3), 4)
    scales, scale = at + 192 + 2 * (unit & 7), half_of_four(at + 202, 3)
    one, two = scale * np.float32(np.int8(byte_at(scales))), scale * np.float32(np.int8(byte_at(scales + 1)))
    offset = np.float32(-32)
    return (
        fma(to_floats(first), splat(one), splat(offset * one)),
        fma(to_floats(second), splat(two), splat(offset * two)),
    )


@jit
def _int8(row: Any, unit: int) -> Any:
    at, scale = row[0] + 32 * unit, splat(bfloat_at(row[1]))
    return multiply(load_signed(at), scale), multiply(load_signed(at + 16), scale)


@jit
def _int4(row: Any, unit: int) -> Any:
    scales = row[1] + (unit >> row[3]) * row[2]
    scale, zero = bfloat_at(scales), bfloat_at(scales + 2)
    return _affine(load_bytes(row[0] + 16 * unit), scale, zero - np.float32(8) * scale)


@jit
def _int3(row: Any, unit: int) -> Any:
    step, offset = _group(row, unit, 4)
    at = row[0] + 12 * unit
    return fma(load_three_bits(at), step, offset), fma(load_three_bits(at + 6), step, offset)


@jit
def _int2(row: Any, unit: int) -> Any:
    step, offset = _group(row, unit, 2)
    at = row[0] + 8 * unit
    return fma(load_two_bits(at), step, offset), fma(load_two_bits(at + 4), step, offset)


@jit
def _group(row: Any, unit: int, centre: int) -> Any:
    """Scale, and zero less `centre` scales, of the group that a unit is in, for each lane."""
    scales = row[1] + (unit >> row[3]) * row[2]
    scale, zero = bfloat_at(scales), bfloat_at(scales + 2)
    return splat(scale), splat(zero - np.float32(centre) * scale)


@jit
def _fp8(row: Any, unit: int) -> Any:
    at, scale = row[0] + 32 * unit, splat(float_at(row[1] + (unit >> row[3]) * row[2]))
    return multiply(e4m3_to_floats(load_bytes(at)), scale), multiply(e4m3_to_floats(load_bytes(at + 16)), scale)


_UNPACK: Mapping[int, Callable[[Any, int], Any]] = MappingProxyType(
    {
        F32: _f32,
        F16: _f16,
        BF16: _bf16,
        Q4_0: _q4_0,
        Q4_1: _q4_1,
        Q8_0: _q8_0,
        Q4_K: _q4_k,
        Q5_K: _q5_k,
        Q6_K: _q6_k,
        INT8: _int8,
        INT4: _int4,
        INT3: _int3,
        INT2: _int2,
        FP8: _fp8,
    }
)
KINDS = frozenset(_UNPACK)


def unpack(kind: int, row: Any, unit: int) -> Any:
    """The 32 weights of a unit as two vectors; `kind` is a constant, so that one format's code remains."""


@overload(unpack, prefer_literal=True)
def _choose_unpack(kind: Any, row: Any, unit: Any) -> Any:
    if not isinstance(kind, types.IntegerLiteral):
        return None
    own = _UNPACK[kind.literal_value]

    def chosen(kind: Any, row: Any, unit: Any) -> Any:
        return own(row, unit)

    return chosen
