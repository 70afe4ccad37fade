"""Products with packed rows, read as they lie in memory: GGUF blocks, float16, bfloat16 and float32.

Every format gives 32 consecutive weights of a row as two vectors of 16 floats, each exactly the dequantized weight;
products are summed in float32. A row starts at an address and is `units` times 32 weights long. Layouts are those of
the ggml specification (ggml-common.h, "block_*" structures), as in `engine.quant.gguf_blocks`.
"""

from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numba import prange
from numba.core import types
from numba.extending import overload, register_jitable
from torch import Tensor

from engine.kernels.cpu.simd import (
    add,
    byte_at,
    fma,
    half_of_four,
    jit,
    load,
    load_bfloats,
    load_bytes,
    load_halves,
    load_signed,
    merge_bits,
    multiply,
    parallel_jit,
    shift_mask,
    splat,
    store,
    threads,
    to_floats,
    total,
    zeros,
)

UNIT = 32
TOKENS = 4
"""Tokens whose products with a row are summed side by side."""
MANY = 9
"""Tokens from which on rows are unpacked before they are multiplied."""
ROW_BLOCK = 32
"""Rows unpacked at a time."""

F32, F16, Q4_0, Q4_1, Q8_0, Q4_K, Q5_K, Q6_K, BF16 = 0, 1, 2, 3, 8, 12, 13, 14, 30
"""The formats by their numbers in a GGUF file."""


@jit
def _plain_unit(kind: int, row: int, unit: int) -> Any:
    if kind == F32:
        return load(row + 128 * unit), load(row + 128 * unit + 64)
    if kind == F16:
        return load_halves(row + 64 * unit), load_halves(row + 64 * unit + 32)
    return load_bfloats(row + 64 * unit), load_bfloats(row + 64 * unit + 32)


@jit
def _f32(row: int, unit: int) -> Any:
    at = row + 128 * unit
    return load(at), load(at + 64)


@jit
def _f16(row: int, unit: int) -> Any:
    at = row + 64 * unit
    return load_halves(at), load_halves(at + 32)


@jit
def _bf16(row: int, unit: int) -> Any:
    at = row + 64 * unit
    return load_bfloats(at), load_bfloats(at + 32)


@jit
def _q4_0(row: int, unit: int) -> Any:
    at = row + 18 * unit
    scale, codes = half_of_four(at, 0), load_bytes(at + 2)
    return _affine(codes, scale, np.float32(-8) * scale)


@jit
def _q4_1(row: int, unit: int) -> Any:
    at = row + 20 * unit
    return _affine(load_bytes(at + 4), half_of_four(at, 0), half_of_four(at, 1))


@jit
def _affine(codes: Any, scale: float, least: float) -> Any:
    """Low and high nibbles of 16 bytes times `scale` plus `least`."""
    step, offset = splat(scale), splat(least)
    low, high = shift_mask(codes, 0, 15), shift_mask(codes, 4, 15)
    return fma(to_floats(low), step, offset), fma(to_floats(high), step, offset)


@jit
def _q8_0(row: int, unit: int) -> Any:
    at = row + 34 * unit
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
def _q4_k(row: int, unit: int) -> Any:
    at, part = row + 144 * (unit >> 3), unit & 7
    scale, least = _six_bits(at + 4, part)
    step, offset = splat(half_of_four(at, 0) * scale), splat(-half_of_four(at, 1) * least)
    codes, shift = at + 16 + 32 * (part >> 1), np.uint8(4 * (part & 1))
    first, second = shift_mask(load_bytes(codes), shift, 15), shift_mask(load_bytes(codes + 16), shift, 15)
    return fma(to_floats(first), step, offset), fma(to_floats(second), step, offset)


@jit
def _q5_k(row: int, unit: int) -> Any:
    at, part = row + 176 * (unit >> 3), unit & 7
    scale, least = _six_bits(at + 4, part)
    step, offset = splat(half_of_four(at, 0) * scale), splat(-half_of_four(at, 1) * least)
    codes, shift = at + 48 + 32 * (part >> 1), np.uint8(4 * (part & 1))
    first, second = shift_mask(load_bytes(codes), shift, 15), shift_mask(load_bytes(codes + 16), shift, 15)
    bit = np.uint8(part)
    first = merge_bits(first, shift_mask(load_bytes(at + 16), bit, 1), 4)
    second = merge_bits(second, shift_mask(load_bytes(at + 32), bit, 1), 4)
    return fma(to_floats(first), step, offset), fma(to_floats(second), step, offset)


@jit
def _q6_k(row: int, unit: int) -> Any:
    at, half, part = row + 210 * (unit >> 3), (unit >> 2) & 1, unit & 3
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


_UNPACK: Mapping[int, Callable[[int, int], Any]] = MappingProxyType(
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
    }
)
KINDS = frozenset(_UNPACK)


def _unpack(kind: int, row: int, unit: int) -> Any:
    """The 32 weights of a unit as two vectors; `kind` is a constant, so that one format's code remains."""


@overload(_unpack, prefer_literal=True)
def _choose_unpack(kind: Any, row: Any, unit: Any) -> Any:
    if not isinstance(kind, types.IntegerLiteral):
        return None
    unpack = _UNPACK[kind.literal_value]

    def chosen(kind: Any, row: Any, unit: Any) -> Any:
        return unpack(row, unit)

    return chosen


@register_jitable
def _dot(kind: int, row: int, x: int, units: int) -> Any:
    first, second = zeros(), zeros()
    for unit in range(units):
        low, high = _unpack(kind, row, unit)
        at = x + 128 * unit
        first, second = fma(low, load(at), first), fma(high, load(at + 64), second)
    return total(add(first, second))


@register_jitable
def _add_products(weights: Any, vectors: Any, sums: Any) -> Any:
    a, b, c, d = vectors
    return fma(weights, a, sums[0]), fma(weights, b, sums[1]), fma(weights, c, sums[2]), fma(weights, d, sums[3])


@register_jitable
def _load_four(x: int, stride: int) -> Any:
    return load(x), load(x + stride), load(x + 2 * stride), load(x + 3 * stride)


@register_jitable
def _four_zeros() -> Any:
    return zeros(), zeros(), zeros(), zeros()


@register_jitable
def _set_totals(y: Any, token: int, row: int, sums: Any) -> None:
    a, b, c, d = sums
    y[token, row], y[token + 1, row], y[token + 2, row], y[token + 3, row] = total(a), total(b), total(c), total(d)


@register_jitable
def _four_dots(kind: int, row: int, x: int, stride: int, units: int) -> Any:
    """Products with the vectors at `x`, `x + stride`, `x + 2 stride` and `x + 3 stride`, not yet summed up."""
    sums = _four_zeros()
    for unit in range(units):
        low, high = _unpack(kind, row, unit)
        at = x + 128 * unit
        sums = _add_products(low, _load_four(at, stride), sums)
        sums = _add_products(high, _load_four(at + 64, stride), sums)
    return sums


@register_jitable
def _write(kind: int, row: int, out: int, units: int) -> None:
    for unit in range(units):
        low, high = _unpack(kind, row, unit)
        store(out + 128 * unit, low)
        store(out + 128 * unit + 64, high)


@register_jitable
def _few_tokens(kind: int, rows: Any, first: int, last: int, x: Any, y: Any) -> None:
    """y[:, first:last] = x @ rows[first:last]^T, each row unpacked once for every 4 tokens."""
    base, width = np.int64(rows.ctypes.data), rows.shape[1]
    vectors, stride, units = np.int64(x.ctypes.data), 4 * x.shape[1], x.shape[1] // UNIT
    tokens = x.shape[0]
    whole = tokens // TOKENS * TOKENS
    for row in range(first, last):
        at = base + row * width
        for token in range(0, whole, TOKENS):
            _set_totals(y, token, row, _four_dots(kind, at, vectors + token * stride, stride, units))
        for token in range(whole, tokens):
            y[token, row] = _dot(kind, at, vectors + token * stride, units)


@register_jitable
def _four_by_four(row: int, x: int, stride: int) -> Any:
    """Products of 4 unpacked rows and 4 vectors, all `stride` bytes long; the registers hold the 16 sums."""
    a, b, c, d = _four_zeros(), _four_zeros(), _four_zeros(), _four_zeros()
    for at in range(0, stride, 64):
        vectors = _load_four(x + at, stride)
        a = _add_products(load(row + at), vectors, a)
        b = _add_products(load(row + at + stride), vectors, b)
        c = _add_products(load(row + at + 2 * stride), vectors, c)
        d = _add_products(load(row + at + 3 * stride), vectors, d)
    return a, b, c, d


@register_jitable
def _many_tokens(kind: int, rows: Any, first: int, last: int, x: Any, y: Any) -> None:
    """What `_few_tokens` does, over blocks of rows that are unpacked once and stay in the core's own cache."""
    base, width = np.int64(rows.ctypes.data), rows.shape[1]
    vectors, stride, units = np.int64(x.ctypes.data), 4 * x.shape[1], x.shape[1] // UNIT
    tokens = x.shape[0]
    whole = tokens // TOKENS * TOKENS
    buffer = np.empty((ROW_BLOCK, x.shape[1]), np.float32)
    unpacked = np.int64(buffer.ctypes.data)
    for start in range(first, last, ROW_BLOCK):
        count = min(ROW_BLOCK, last - start)
        for row in range(count):
            _write(kind, base + (start + row) * width, unpacked + row * stride, units)
        for token in range(0, whole, TOKENS):
            at = vectors + token * stride
            for row in range(0, count - 3, 4):
                a, b, c, d = _four_by_four(unpacked + row * stride, at, stride)
                _set_totals(y, token, start + row, a)
                _set_totals(y, token, start + row + 1, b)
                _set_totals(y, token, start + row + 2, c)
                _set_totals(y, token, start + row + 3, d)
            for row in range(count // 4 * 4, count):
                _set_totals(y, token, start + row, _four_dots(F32, unpacked + row * stride, at, stride, units))
        for token in range(whole, tokens):
            for row in range(count):
                y[token, start + row] = _dot(F32, unpacked + row * stride, vectors + token * stride, units)


@register_jitable
def rows_product(kind: int, rows: Any, first: int, last: int, x: Any, y: Any) -> None:
    """y[:, first:last] = x @ rows[first:last]^T; x float32 [M, in], y float32 [M, out], both with adjoining columns."""
    if x.shape[0] < MANY:
        _few_tokens(kind, rows, first, last, x, y)
    else:
        _many_tokens(kind, rows, first, last, x, y)


@cache
def _matmul(kind: int) -> Any:
    """`rows_product` over threads for one format; built by format, so that only formats in use are compiled."""

    @parallel_jit
    def multiply_rows(rows: Any, x: Any, y: Any, parts: int) -> None:
        count = rows.shape[0]
        for part in prange(parts):
            rows_product(kind, rows, part * count // parts, (part + 1) * count // parts, x, y)

    return multiply_rows


@cache
def _matmul_each(kind: int) -> Any:
    """`_matmul` of the same vectors with several matrices: every thread takes its share of each."""

    @parallel_jit
    def multiply_each(matrices: Any, x: Any, results: Any, parts: int) -> None:
        for part in prange(parts):
            for i in range(len(matrices)):
                count = matrices[i].shape[0]
                rows_product(kind, matrices[i], part * count // parts, (part + 1) * count // parts, x, results[i])

    return multiply_each


@cache
def _expand(kind: int) -> Any:
    """Unpacking of rows over threads for one format."""

    @parallel_jit
    def expand_rows(rows: Any, out: Any, parts: int) -> None:
        count, width, units = rows.shape[0], rows.shape[1], out.shape[1] // UNIT
        base, target = np.int64(rows.ctypes.data), np.int64(out.ctypes.data)
        for part in prange(parts):
            for row in range(part * count // parts, (part + 1) * count // parts):
                _write(kind, base + row * width, target + 4 * row * out.shape[1], units)

    return expand_rows


def matmul(x: Tensor, rows: Tensor, kind: int) -> Tensor:
    """x @ W^T: float32 [M, in] to float32 [M, out].

    `rows` uint8 [out, row bytes] holds W [out, in] in the format that a GGUF file numbers `kind`; `in` is a multiple of
    32.
    """
    y = torch.empty(x.shape[0], rows.shape[0])
    _matmul(kind)(rows.numpy(), x.contiguous().numpy(), y.numpy(), threads())
    return y


def matmul_each(x: Tensor, matrices: tuple[np.ndarray, ...], kind: int) -> tuple[Tensor, ...]:
    """`matmul` with each of several matrices of one format."""
    results = tuple(torch.empty(x.shape[0], len(rows)) for rows in matrices)
    _matmul_each(kind)(matrices, x.contiguous().numpy(), tuple(y.numpy() for y in results), threads())
    return results


def expand(rows: Tensor, kind: int, columns: int) -> Tensor:
    """W float32 [out, columns] of what `matmul` reads."""
    out = torch.empty(rows.shape[0], columns)
    _expand(kind)(rows.contiguous().numpy(), out.numpy(), threads())
    return out
