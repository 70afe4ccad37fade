"""Norms, activation and rotation in one pass over float32 rows, on one core where a second costs more than it saves."""

from typing import Any

import numpy as np
import torch
from numba import prange
from torch import Tensor

from engine.kernels.cpu.compiler import PARALLEL_PRODUCTS, jit, parallel_jit, run
from engine.kernels.cpu.simd import decay, floats_at
from engine.kernels.reference import store_kv

PARALLEL_ELEMENTS = 1 << 15
"""Elements from which on rows are spread over threads: about what one core does while another wakes up."""
PRODUCTS = PARALLEL_PRODUCTS // PARALLEL_ELEMENTS
"""Multiplications that take as long as an element."""


def rms_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """See `reference.rms_norm`."""
    y, x, width = torch.empty(x.shape), x.float().contiguous(), x.shape[-1]
    rows = x.numel() // width
    run(_NORM, PRODUCTS * x.numel(), x.data_ptr(), weight.data_ptr(), rows, width, eps, y.data_ptr())
    return y if dtype == torch.float32 else y.to(dtype)


def add_rms_norm(hidden: Tensor, delta: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """See `reference.add_rms_norm`."""
    if delta.dtype != torch.float32:
        hidden += delta
        return rms_norm(hidden, weight, eps, dtype)
    y, (rows, width), delta = torch.empty(hidden.shape), hidden.shape, delta.contiguous()
    addresses = hidden.data_ptr(), delta.data_ptr(), weight.data_ptr()
    run(_ADD_NORM, PRODUCTS * hidden.numel(), *addresses, rows, width, eps, y.data_ptr())
    return y if dtype == torch.float32 else y.to(dtype)


def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """See `reference.silu_mul`; `gate` is overwritten."""
    if gate.dtype != torch.float32:
        return torch.nn.functional.silu(gate, inplace=True).mul_(up)
    run(_SILU_MUL, PRODUCTS * gate.numel(), gate.numpy(), up.numpy())
    return gate


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """See `reference.rotate`."""
    y = torch.empty(x.shape)
    run(_ROTATE, PRODUCTS * x.numel(), x.float().numpy(), cos.numpy(), sin.numpy(), y.numpy())
    return y


def rotate_and_store(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cos: Tensor,
    sin: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slots: Tensor,
) -> Tensor:
    """See `reference.rotate_and_store`."""
    if query.numel() >= PARALLEL_ELEMENTS or key_cache.dtype != torch.float32:
        store_kv(rotate(key, cos, sin), value, key_cache, value_cache, slots)
        return rotate(query, cos, sin)
    query, key, value = (x.float().contiguous() for x in (query, key, value))
    rotated = torch.empty(query.shape)
    _rotate_and_store(
        len(query),
        *(query.shape[1], key.shape[1], query.shape[2], cos.shape[-1]),
        *(query.data_ptr(), key.data_ptr(), value.data_ptr(), cos.data_ptr(), sin.data_ptr()),
        *(key_cache.data_ptr(), value_cache.data_ptr(), rotated.data_ptr()),
        slots.numpy(),
    )
    return rotated


@jit
def norm_row(x: Any, weight: Any, eps: float, y: Any) -> None:
    """`reference.rms_norm` of one row, into `y`."""
    squares = np.float32(0)
    for i in range(len(x)):
        squares += x[i] * x[i]
    scale = np.float32(1 / np.sqrt(squares / len(x) + eps))
    for i in range(len(x)):
        y[i] = x[i] * scale * weight[i]


@jit
def _norm_part(part: int, parts: int, x: int, weight: int, rows: int, width: int, eps: float, y: int) -> None:
    factors = floats_at(weight, width)
    for row in range(part * rows // parts, (part + 1) * rows // parts):
        at = 4 * row * width
        norm_row(floats_at(x + at, width), factors, eps, floats_at(y + at, width))


@parallel_jit
def _norm_all(parts: int, x: int, weight: int, rows: int, width: int, eps: float, y: int) -> None:
    for part in prange(parts):
        _norm_part(part, parts, x, weight, rows, width, eps, y)


@jit
def _add_norm_part(
    part: int, parts: int, hidden: int, delta: int, weight: int, rows: int, width: int, eps: float, y: int
) -> None:
    factors = floats_at(weight, width)
    for row in range(part * rows // parts, (part + 1) * rows // parts):
        at = 4 * row * width
        total, added = floats_at(hidden + at, width), floats_at(delta + at, width)
        for i in range(width):
            total[i] += added[i]
        norm_row(total, factors, eps, floats_at(y + at, width))


@parallel_jit
def _add_norm_all(parts: int, hidden: int, delta: int, weight: int, rows: int, width: int, eps: float, y: int) -> None:
    for part in prange(parts):
        _add_norm_part(part, parts, hidden, delta, weight, rows, width, eps, y)


@jit
def silu(x: Any) -> Any:
    """x sigmoid(x), of float32."""
    small = decay(-abs(x))
    return x * (np.float32(1) if x >= 0 else small) / (np.float32(1) + small)


@jit
def _silu_mul_part(part: int, parts: int, gate: Any, up: Any) -> None:
    for row in range(part * len(gate) // parts, (part + 1) * len(gate) // parts):
        for i in range(gate.shape[1]):
            gate[row, i] = silu(gate[row, i]) * up[row, i]


@parallel_jit
def _silu_mul_all(parts: int, gate: Any, up: Any) -> None:
    for part in prange(parts):
        _silu_mul_part(part, parts, gate, up)


@jit
def rotate_head(x: Any, cos: Any, sin: Any, y: Any) -> None:
    """`reference.rotate` of one head, into `y`."""
    half = len(cos)
    for i in range(half):
        y[i] = x[i] * cos[i] - x[half + i] * sin[i]
        y[half + i] = x[half + i] * cos[i] + x[i] * sin[i]
    for i in range(2 * half, len(x)):
        y[i] = x[i]


@jit
def _rotate_part(part: int, parts: int, x: Any, cos: Any, sin: Any, y: Any) -> None:
    for row in range(part * len(x) // parts, (part + 1) * len(x) // parts):
        for head in range(x.shape[1]):
            rotate_head(x[row, head], cos[row, 0], sin[row, 0], y[row, head])


@parallel_jit
def _rotate_all(parts: int, x: Any, cos: Any, sin: Any, y: Any) -> None:
    for part in prange(parts):
        _rotate_part(part, parts, x, cos, sin, y)


@jit
def _rotate_and_store(
    rows: int,
    heads: int,
    kv_heads: int,
    width: int,
    half: int,
    query: int,
    key: int,
    value: int,
    cos: int,
    sin: int,
    key_cache: int,
    value_cache: int,
    rotated: int,
    slots: Any,
) -> None:
    """Addresses are of contiguous float32; token slots lie one after another in the caches."""
    head_bytes = 4 * width
    for row in range(rows):
        turn, shift = floats_at(cos + 4 * row * half, half), floats_at(sin + 4 * row * half, half)
        for head in range(row * heads, (row + 1) * heads):
            at = head * head_bytes
            rotate_head(floats_at(query + at, width), turn, shift, floats_at(rotated + at, width))
        for head in range(kv_heads):
            source, target = (row * kv_heads + head) * head_bytes, (slots[row] * kv_heads + head) * head_bytes
            rotate_head(floats_at(key + source, width), turn, shift, floats_at(key_cache + target, width))
            floats_at(value_cache + target, width)[:] = floats_at(value + source, width)


_NORM = _norm_part, _norm_all
_ADD_NORM = _add_norm_part, _add_norm_all
_SILU_MUL = _silu_mul_part, _silu_mul_all
_ROTATE = _rotate_part, _rotate_all
