"""Products with packed rows, read as they lie in memory: GGUF blocks, float16, bfloat16 and float32.

Every format gives 32 consecutive weights of a row as two vectors of 16 floats, each exactly the dequantized weight;
products are summed in float32. A row is `units` times 32 weights long and
known by the addresses of its codes and of its scales, where these lie apart, by the bytes from a group's scale to the
next group's, and by the logarithm of a group's units. Layouts of blocks are those of the ggml specification
(ggml-common.h, "block_*" structures), as in `engine.quant.gguf_blocks`; int8 and int4 are as `Packed` describes them.
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
    bfloat_at,
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

Matrix = tuple[np.ndarray, np.ndarray, int, int]
"""Codes uint8 [out, row bytes], scales as bytes, bytes of them for each row and group, log2 of the units in a group."""

UNIT = 32
TOKENS = 4
"""Tokens whose products with a row are summed side by side."""
MANY = 9
"""Tokens from which on rows are unpacked before they are multiplied."""
ROW_BLOCK = 32
"""Rows unpacked at a time."""

F32, F16, Q4_0, Q4_1, Q8_0, Q4_K, Q5_K, Q6_K, BF16 = 0, 1, 2, 3, 8, 12, 13, 14, 30
"""The formats by their numbers in a GGUF file."""
INT8, INT4 = 108, 104
"""Our own formats, which no GGUF file numbers."""


@jit
def _plain_unit(kind: int, row: int, unit: int) -> Any:
    if kind == F32:
        return load(row + 128 * unit), load(row + 128 * unit + 64)
    if kind == F16:
        return load_halves(row + 64 * unit), load_halves(row + 64 * unit + 32)
    return load_bfloats(row + 64 * unit), load_bfloats(row + 64 * unit + 32)


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
    }
)
KINDS = frozenset(_UNPACK)


def _unpack(kind: int, row: Any, unit: int) -> Any:
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
def row_at(matrix: Any, index: int) -> Any:
    """What `_unpack` knows row `index` of a `Matrix` by."""
    codes, scales, scale_bytes, group = matrix
    at = np.int64(codes.ctypes.data) + index * codes.shape[1]
    return at, np.int64(scales.ctypes.data) + index * scale_bytes, scale_bytes * codes.shape[0], group


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
def _dot(kind: int, row: Any, x: int, units: int) -> Any:
    first, second = zeros(), zeros()
    for unit in range(units):
        low, high = _unpack(kind, row, unit)
        at = x + 128 * unit
        first, second = fma(low, load(at), first), fma(high, load(at + 64), second)
    return total(add(first, second))


@register_jitable
def _dot_four_tokens(kind: int, row: Any, x: int, stride: int, units: int) -> Any:
    """Products with the vectors at `x`, `x + stride`, `x + 2 stride` and `x + 3 stride`, not yet summed up."""
    sums = _four_zeros()
    for unit in range(units):
        low, high = _unpack(kind, row, unit)
        at = x + 128 * unit
        sums = _add_products(low, _load_four(at, stride), sums)
        sums = _add_products(high, _load_four(at + 64, stride), sums)
    return sums


@register_jitable
def _write(kind: int, row: Any, out: int, units: int) -> None:
    for unit in range(units):
        low, high = _unpack(kind, row, unit)
        store(out + 128 * unit, low)
        store(out + 128 * unit + 64, high)


@register_jitable
def _few_tokens(kind: int, matrix: Any, first: int, last: int, x: Any, y: Any) -> None:
    """y[:, first:last] = x @ matrix[first:last]^T, each row unpacked once for every 4 tokens.

    One row after another, as memory is read fastest in order.
    """
    vectors, stride, units = np.int64(x.ctypes.data), 4 * x.shape[1], x.shape[1] // UNIT
    tokens = x.shape[0]
    whole = tokens // TOKENS * TOKENS
    for index in range(first, last):
        row = row_at(matrix, index)
        for token in range(0, whole, TOKENS):
            _set_totals(y, token, index, _dot_four_tokens(kind, row, vectors + token * stride, stride, units))
        for token in range(whole, tokens):
            y[token, index] = _dot(kind, row, vectors + token * stride, units)


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
def _many_tokens(kind: int, matrix: Any, first: int, last: int, x: Any, y: Any) -> None:
    """What `_few_tokens` does, over blocks of rows that are unpacked once and stay in the core's own cache."""
    vectors, stride, units = np.int64(x.ctypes.data), 4 * x.shape[1], x.shape[1] // UNIT
    tokens = x.shape[0]
    whole = tokens // TOKENS * TOKENS
    buffer = np.empty((ROW_BLOCK, x.shape[1]), np.float32)
    unpacked = np.int64(buffer.ctypes.data)
    for start in range(first, last, ROW_BLOCK):
        count = min(ROW_BLOCK, last - start)
        for row in range(count):
            _write(kind, row_at(matrix, start + row), unpacked + row * stride, units)
        for token in range(0, whole, TOKENS):
            at = vectors + token * stride
            for row in range(0, count - 3, 4):
                a, b, c, d = _four_by_four(unpacked + row * stride, at, stride)
                _set_totals(y, token, start + row, a)
                _set_totals(y, token, start + row + 1, b)
                _set_totals(y, token, start + row + 2, c)
                _set_totals(y, token, start + row + 3, d)
            for row in range(count // 4 * 4, count):
                plain = (unpacked + row * stride, 0, 0, 0)
                _set_totals(y, token, start + row, _dot_four_tokens(F32, plain, at, stride, units))
        for token in range(whole, tokens):
            for row in range(count):
                plain = (unpacked + row * stride, 0, 0, 0)
                y[token, start + row] = _dot(F32, plain, vectors + token * stride, units)


@register_jitable
def rows_product(kind: int, matrix: Any, first: int, last: int, x: Any, y: Any) -> None:
    """y[:, first:last] = x @ matrix[first:last]^T, float32 [M, in] and [M, out], with a `Matrix` of format `kind`."""
    if x.shape[0] < MANY:
        _few_tokens(kind, matrix, first, last, x, y)
    else:
        _many_tokens(kind, matrix, first, last, x, y)


@cache
def _matmul(kind: int) -> Any:
    """Products with several matrices over threads, for one format: only formats in use are compiled."""

    @parallel_jit
    def multiply_rows(codes: Any, scales: Any, scale_bytes: int, group: int, x: Any, results: Any, parts: int) -> None:
        for part in prange(parts):
            for i in range(len(codes)):
                count = codes[i].shape[0]
                first, last = part * count // parts, (part + 1) * count // parts
                rows_product(kind, (codes[i], scales[i], scale_bytes, group), first, last, x, results[i])

    return multiply_rows


@cache
def _expand(kind: int) -> Any:
    """Unpacking of rows over threads for one format."""

    @parallel_jit
    def expand_rows(codes: Any, scales: Any, scale_bytes: int, group: int, out: Any, parts: int) -> None:
        count, units, target = out.shape[0], out.shape[1] // UNIT, np.int64(out.ctypes.data)
        for part in prange(parts):
            for row in range(part * count // parts, (part + 1) * count // parts):
                at = row_at((codes, scales, scale_bytes, group), row)
                _write(kind, at, target + 4 * row * out.shape[1], units)

    return expand_rows


def matrix(codes: Tensor, scales: Tensor | None = None, scale_bytes: int = 0, group: int = UNIT) -> Matrix:
    """W [out, in] for `matmul`, with `in` a multiple of 32: a view of `codes`, of any type, by rows [out, ...].

    `scales`, where they lie apart from the codes, begin with the first group's, `scale_bytes` for each row; a group is
    `group` columns, 32 times a power of 2.
    """
    apart = np.empty(0, np.uint8) if scales is None else scales.view(torch.uint8).flatten().numpy()
    return codes.view(torch.uint8).flatten(1).numpy(), apart, scale_bytes, (group // UNIT).bit_length() - 1


def matmul(x: Tensor, matrices: tuple[Matrix, ...], kind: int) -> tuple[Tensor, ...]:
    """x @ W^T with each of several matrices of one format, `kind`, and group: float32 [M, in] to float32 [M, out]."""
    codes, scales, (scale_bytes, *_), (group, *_) = zip(*matrices, strict=True)
    results = tuple([torch.empty(x.shape[0], len(rows)) for rows in codes])
    outputs = tuple([y.numpy() for y in results])
    products = x.numel() * sum(map(len, codes))
    _matmul(kind)(codes, scales, scale_bytes, group, x.contiguous().numpy(), outputs, threads(products))
    return results


def expand(packed: Matrix, kind: int, columns: int) -> Tensor:
    """W float32 [out, columns] of a matrix of format `kind`."""
    out = torch.empty(len(packed[0]), columns)
    _expand(kind)(*packed, out.numpy(), threads(4 * out.numel()))
    return out
