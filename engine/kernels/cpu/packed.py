"""Products with packed rows, read as they lie in memory: GGUF blocks, plain floats, int8, int4, int3, int2 and fp8.

Products of exactly dequantized weights (`engine.kernels.cpu.unpack`) are summed in float32. Kernels take addresses:
what numba does to take an array apart costs a small product as much as the product itself.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numba import prange
from numba.core import types
from numba.extending import overload, register_jitable
from torch import Tensor

from engine.kernels.cpu.compiler import jit, parallel_jit, run
from engine.kernels.cpu.k_blocks import BLOCK_BYTES, UNITS, block_dot
from engine.kernels.cpu.simd import (
    add,
    fma,
    load,
    set_float,
    store,
    total,
    zeros,
)
from engine.kernels.cpu.unpack import F32, FP8, INT2, INT3, INT4, INT8, KINDS, unpack

__all__ = ["FP8", "INT2", "INT3", "INT4", "INT8", "KINDS", "Matrices", "expand", "join", "matmul", "matrix"]

UNIT = 32
TOKENS = 4
"""Tokens whose products with a row are summed side by side."""
MANY = 9
"""Tokens from which on rows are unpacked before they are multiplied."""
ROW_BLOCK = 32
"""Rows unpacked at a time."""

CODES, ROW_BYTES, ROWS, SCALES, SCALE_BYTES, SCALE_SHIFT, GROUP_BYTES, GROUP_SHIFT, CODES_STEP, SCALES_STEP = range(10)
"""Columns of a `Matrices` table."""


@dataclass(frozen=True, eq=False)
class Matrices:
    """Matrices of one format and width as the kernels see them, one to a row of `table` int64 [n, 10].

    In bytes: where codes begin and how long a row of them is; where scales begin, how far it is from those of 2^shift
    rows to the next ones', and from a group's scale to the next group's; how far from one expert's codes and scales
    to the next one's. A group is 2^shift units of 32 columns. `held` keeps the memory alive.
    """

    table: np.ndarray
    held: tuple[Tensor, ...]

    @property
    def rows(self) -> tuple[int, ...]:
        counts: tuple[int, ...] = tuple(self.table[:, ROWS].tolist())
        return counts


def matrix(
    codes: Tensor,
    scales: Tensor | None = None,
    *,
    scale_bytes: int = 0,
    scale_rows: int = 1,
    group_bytes: int = 0,
    group: int = UNIT,
) -> Matrices:
    """W [out, in] with `in` a multiple of 32, or E such matrices.

    `codes`, of any type, are contiguous rows [(E,) out, ...].
    `scales`, where they lie apart from the codes, have the first group's of the first row first, then `scale_bytes` on
    for each `scale_rows` rows and `group_bytes` for each `group` columns, which is 32 times a power of 2.
    """
    steps = [
        tensor.stride(0) * tensor.itemsize if codes.ndim > 2 and tensor is not None else 0 for tensor in (codes, scales)
    ]
    row_bytes = codes.shape[-1] * codes.itemsize
    table = [codes.data_ptr(), row_bytes, codes.shape[-2], 0 if scales is None else scales.data_ptr()]
    table += [scale_bytes, scale_rows.bit_length() - 1, group_bytes, (group // UNIT).bit_length() - 1, *steps]
    return Matrices(np.array([table], np.int64), (codes,) if scales is None else (codes, scales))


def join(matrices: tuple[Matrices, ...]) -> Matrices:
    """Several of one format and width."""
    held = tuple(tensor for one in matrices for tensor in one.held)
    return Matrices(np.concatenate([one.table for one in matrices]), held)


def matmul(x: Tensor, matrices: Matrices, kind: int) -> tuple[Tensor, ...]:
    """x @ W^T with each of several matrices of format `kind`: float32 [M, in] to a float32 [M, out] for each."""
    tokens, columns = x.shape
    rows = matrices.rows
    x, y = x.contiguous(), torch.empty(tokens * sum(rows))
    run(_products(kind), x.numel() * sum(rows), matrices.table, x.data_ptr(), tokens, columns, y.data_ptr())
    if len(rows) == 1:
        return (y.view(tokens, rows[0]),)
    parts = torch.split(y, [tokens * count for count in rows])
    return tuple([part.view(tokens, count) for part, count in zip(parts, rows, strict=True)])


def expand(packed: Matrices, kind: int, columns: int) -> Tensor:
    """W float32 [out, columns] of a matrix of format `kind`."""
    out = torch.empty(packed.rows[0], columns)
    run(_expansion(kind), 4 * out.numel(), packed.table, columns, out.data_ptr())
    return out


@cache
def _products(kind: int) -> tuple[Any, Any]:
    """For one format: only formats in use are compiled."""

    @jit
    def multiply_part(part: int, parts: int, table: Any, x: int, tokens: int, columns: int, y: int) -> None:
        _multiply(kind, part, parts, table, x, tokens, columns, y)

    @parallel_jit
    def multiply_all(parts: int, table: Any, x: int, tokens: int, columns: int, y: int) -> None:
        for part in prange(parts):
            _multiply(kind, part, parts, table, x, tokens, columns, y)

    return multiply_part, multiply_all


@register_jitable
def _multiply(kind: int, part: int, parts: int, table: Any, x: int, tokens: int, columns: int, y: int) -> None:
    for which in range(len(table)):
        rows = table[which, ROWS]
        first, last = part * rows // parts, (part + 1) * rows // parts
        rows_product(kind, table, which, first, last, x, tokens, columns, y)
        y += 4 * tokens * rows


@cache
def _expansion(kind: int) -> tuple[Any, Any]:
    @jit
    def expand_part(part: int, parts: int, table: Any, columns: int, out: int) -> None:
        _expand(kind, part, parts, table, columns, out)

    @parallel_jit
    def expand_all(parts: int, table: Any, columns: int, out: int) -> None:
        for part in prange(parts):
            _expand(kind, part, parts, table, columns, out)

    return expand_part, expand_all


@register_jitable
def _expand(kind: int, part: int, parts: int, table: Any, columns: int, out: int) -> None:
    rows = table[0, ROWS]
    for row in range(part * rows // parts, (part + 1) * rows // parts):
        _write(kind, row_at(table, 0, row), out + 4 * row * columns, columns // UNIT)


@register_jitable
def row_at(table: Any, which: int, index: int) -> Any:
    """What `unpack` knows row `index` of matrix `which` by."""
    at = table[which]
    scale = at[SCALES] + (index >> at[SCALE_SHIFT]) * at[SCALE_BYTES]
    return at[CODES] + index * at[ROW_BYTES], scale, at[GROUP_BYTES], at[GROUP_SHIFT]


@register_jitable
def expert_product(kind: int, table: Any, expert: int, first: int, last: int, x: int, units: int, out: Any) -> None:
    """Rows first:last of one expert's matrix in a stack times the vector at `x`, to float32 at `out`.

    What the table says is read once: the compiler cannot know that `out` lies elsewhere.
    """
    codes, row_bytes = table[0, CODES] + expert * table[0, CODES_STEP], table[0, ROW_BYTES]
    scales, scale_bytes = table[0, SCALES] + expert * table[0, SCALES_STEP], table[0, SCALE_BYTES]
    shift, group_bytes, group_shift = table[0, SCALE_SHIFT], table[0, GROUP_BYTES], table[0, GROUP_SHIFT]
    for index in range(first, last):
        row = codes + index * row_bytes, scales + (index >> shift) * scale_bytes, group_bytes, group_shift
        set_float(out + 4 * (index - first), dot(kind, row, x, units))


@register_jitable
def rows_product(
    kind: int, table: Any, which: int, first: int, last: int, x: int, tokens: int, columns: int, y: int
) -> None:
    """y[:, first:last] = x @ W[first:last]^T with matrix `which` of format `kind`; x and y are contiguous float32."""
    if tokens < MANY:
        _few_tokens(kind, table, which, first, last, x, tokens, columns, y)
    else:
        _many_tokens(kind, table, which, first, last, x, tokens, columns, y)


@register_jitable
def _few_tokens(
    kind: int, table: Any, which: int, first: int, last: int, x: int, tokens: int, columns: int, y: int
) -> None:
    """Each row is unpacked once for every 4 tokens; one row after another, as memory is read fastest in order."""
    stride, units, rows = 4 * columns, columns // UNIT, table[which, ROWS]
    whole = tokens // TOKENS * TOKENS
    for index in range(first, last):
        row = row_at(table, which, index)
        for token in range(0, whole, TOKENS):
            sums = _dot_four_tokens(kind, row, x + token * stride, stride, units)
            _set_totals(y + 4 * (token * rows + index), 4 * rows, sums)
        for token in range(whole, tokens):
            set_float(y + 4 * (token * rows + index), dot(kind, row, x + token * stride, units))


@register_jitable
def _many_tokens(
    kind: int, table: Any, which: int, first: int, last: int, x: int, tokens: int, columns: int, y: int
) -> None:
    """What `_few_tokens` does, over blocks of rows that are unpacked once and stay in the core's own cache."""
    stride, units, rows = 4 * columns, columns // UNIT, table[which, ROWS]
    whole = tokens // TOKENS * TOKENS
    buffer = np.empty((ROW_BLOCK, columns), np.float32)
    unpacked = np.int64(buffer.ctypes.data)
    for start in range(first, last, ROW_BLOCK):
        count = min(ROW_BLOCK, last - start)
        for row in range(count):
            _write(kind, row_at(table, which, start + row), unpacked + row * stride, units)
        for token in range(tokens):
            at, out = x + token * stride, y + 4 * (token * rows + start)
            if token >= whole:
                for row in range(count):
                    set_float(out + 4 * row, dot(F32, (unpacked + row * stride, 0, 0, 0), at, units))
            elif token % TOKENS == 0:
                _block_by_four(unpacked, count, at, stride, out, 4 * rows)


@register_jitable
def _block_by_four(unpacked: Any, count: int, x: int, stride: int, out: int, step: int) -> None:
    """Products of `count` unpacked rows and 4 vectors, the outputs of a vector `step` bytes from the last one's."""
    for row in range(0, count - 3, 4):
        a, b, c, d = _four_by_four(unpacked + row * stride, x, stride)
        _set_totals(out + 4 * row, step, a)
        _set_totals(out + 4 * row + 4, step, b)
        _set_totals(out + 4 * row + 8, step, c)
        _set_totals(out + 4 * row + 12, step, d)
    for row in range(count // 4 * 4, count):
        plain = (unpacked + row * stride, 0, 0, 0)
        _set_totals(out + 4 * row, step, _dot_four_tokens(F32, plain, x, stride, stride // (4 * UNIT)))


def dot(kind: int, row: Any, x: int, units: int) -> Any:
    """The product of a row and the vector at `x`; `kind` is a constant."""


@overload(dot, prefer_literal=True)
def _choose_dot(kind: int, row: Any, x: int, units: int) -> Any:
    if not isinstance(kind, types.IntegerLiteral):
        return None
    if kind.literal_value not in BLOCK_BYTES:
        return _dot_units
    own = block_dot(kind.literal_value)

    def by_block(kind: int, row: Any, x: int, units: int) -> Any:
        return own(row[0], x, units // UNITS)

    return by_block


def _dot_units(kind: int, row: Any, x: int, units: int) -> Any:
    first, second = zeros(), zeros()
    for unit in range(units):
        low, high = unpack(kind, row, unit)
        at = x + 128 * unit
        first, second = fma(low, load(at), first), fma(high, load(at + 64), second)
    return total(add(first, second))


@register_jitable
def _dot_four_tokens(kind: int, row: Any, x: int, stride: int, units: int) -> Any:
    """Products with the vectors at `x`, `x + stride`, `x + 2 stride` and `x + 3 stride`, not yet summed up."""
    sums = _four_zeros()
    for unit in range(units):
        low, high = unpack(kind, row, unit)
        at = x + 128 * unit
        sums = _add_products(low, _load_four(at, stride), sums)
        sums = _add_products(high, _load_four(at + 64, stride), sums)
    return sums


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
def _set_totals(out: int, step: int, sums: Any) -> None:
    a, b, c, d = sums
    set_float(out, total(a))
    set_float(out + step, total(b))
    set_float(out + 2 * step, total(c))
    set_float(out + 3 * step, total(d))


@register_jitable
def _write(kind: int, row: Any, out: Any, units: int) -> None:
    for unit in range(units):
        low, high = unpack(kind, row, unit)
        store(out + 128 * unit, low)
        store(out + 128 * unit + 64, high)
