"""Norms, activation and rotation in one pass over float32 rows, on one core where a second costs more than it saves."""

from typing import Any

import numpy as np
import torch
from numba import prange
from torch import Tensor

from engine.kernels.cpu.simd import PARALLEL_PRODUCTS, decay, jit, parallel_jit, threads
from engine.kernels.reference import store_kv

PARALLEL_ELEMENTS = 1 << 15
"""Elements from which on rows are spread over threads: about what one core does while another wakes up."""


def rms_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """See `reference.rms_norm`."""
    y = torch.empty(x.shape)
    width = x.shape[-1]
    rows, out = x.float().reshape(-1, width).numpy(), y.view(-1, width).numpy()
    if x.numel() < PARALLEL_ELEMENTS:
        _norm_rows(0, len(rows), rows, weight.numpy(), eps, out)
    else:
        _norm(threads(PARALLEL_PRODUCTS), rows, weight.numpy(), eps, out)
    return y if dtype == torch.float32 else y.to(dtype)


def add_rms_norm(hidden: Tensor, delta: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """See `reference.add_rms_norm`."""
    if delta.dtype != torch.float32 or hidden.numel() >= PARALLEL_ELEMENTS:
        hidden += delta
        return rms_norm(hidden, weight, eps, dtype)
    y = torch.empty(hidden.shape)
    _add_norm_rows(hidden.numpy(), delta.numpy(), weight.numpy(), eps, y.numpy())
    return y if dtype == torch.float32 else y.to(dtype)


def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """See `reference.silu_mul`; `gate` is overwritten."""
    if gate.dtype != torch.float32:
        return torch.nn.functional.silu(gate, inplace=True).mul_(up)
    if gate.numel() < PARALLEL_ELEMENTS:
        _silu_mul_rows(0, len(gate), gate.numpy(), up.numpy())
    else:
        _silu_mul(threads(PARALLEL_PRODUCTS), gate.numpy(), up.numpy())
    return gate


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """See `reference.rotate`."""
    y = torch.empty(x.shape)
    if x.numel() < PARALLEL_ELEMENTS:
        _rotate_rows(0, len(x), x.float().numpy(), cos.numpy(), sin.numpy(), y.numpy())
    else:
        _rotate(threads(PARALLEL_PRODUCTS), x.float().numpy(), cos.numpy(), sin.numpy(), y.numpy())
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
    rotated = torch.empty(query.shape)
    _rotate_and_store(
        query.float().numpy(),
        key.float().numpy(),
        value.float().numpy(),
        cos.numpy(),
        sin.numpy(),
        key_cache.numpy(),
        value_cache.numpy(),
        slots.numpy(),
        rotated.numpy(),
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
def _norm_rows(first: int, last: int, x: Any, weight: Any, eps: float, y: Any) -> None:
    for row in range(first, last):
        norm_row(x[row], weight, eps, y[row])


@parallel_jit
def _norm(parts: int, x: Any, weight: Any, eps: float, y: Any) -> None:
    for part in prange(parts):
        _norm_rows(part * len(x) // parts, (part + 1) * len(x) // parts, x, weight, eps, y)


@jit
def _add_norm_rows(hidden: Any, delta: Any, weight: Any, eps: float, y: Any) -> None:
    for row in range(len(hidden)):
        for i in range(hidden.shape[1]):
            hidden[row, i] += delta[row, i]
        norm_row(hidden[row], weight, eps, y[row])


@jit
def silu(x: Any) -> Any:
    """x sigmoid(x), of float32."""
    small = decay(-abs(x))
    return x * (np.float32(1) if x >= 0 else small) / (np.float32(1) + small)


@jit
def _silu_mul_rows(first: int, last: int, gate: Any, up: Any) -> None:
    for row in range(first, last):
        for i in range(gate.shape[1]):
            gate[row, i] = silu(gate[row, i]) * up[row, i]


@parallel_jit
def _silu_mul(parts: int, gate: Any, up: Any) -> None:
    for part in prange(parts):
        _silu_mul_rows(part * len(gate) // parts, (part + 1) * len(gate) // parts, gate, up)


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
def _rotate_rows(first: int, last: int, x: Any, cos: Any, sin: Any, y: Any) -> None:
    for row in range(first, last):
        for head in range(x.shape[1]):
            rotate_head(x[row, head], cos[row, 0], sin[row, 0], y[row, head])


@parallel_jit
def _rotate(parts: int, x: Any, cos: Any, sin: Any, y: Any) -> None:
    for part in prange(parts):
        _rotate_rows(part * len(x) // parts, (part + 1) * len(x) // parts, x, cos, sin, y)


@jit
def _rotate_and_store(
    query: Any,
    key: Any,
    value: Any,
    cos: Any,
    sin: Any,
    key_cache: Any,
    value_cache: Any,
    slots: Any,
    rotated: Any,
) -> None:
    _rotate_rows(0, len(query), query, cos, sin, rotated)
    size = key_cache.shape[1]
    for row in range(len(slots)):
        block, offset = slots[row] // size, slots[row] % size
        for head in range(key.shape[1]):
            rotate_head(key[row, head], cos[row, 0], sin[row, 0], key_cache[block, offset, head])
        value_cache[block, offset] = value[row]
