"""One token of each sequence through DeltaNet on CPU, from the projections to the gated norm, in one call.

A key head and the value heads that read it need nothing of the others: each takes its channels out of the interleaved
projections, convolves them, moves its part of the state on where it lies, and writes its outputs.
"""

import math
from typing import Any

import numpy as np
import torch
from numba import prange
from numba.core import types
from numba.extending import overload
from torch import Tensor

from engine.kernels import reference_delta
from engine.kernels.cpu.compiler import jit, parallel_jit, run
from engine.kernels.cpu.elementwise import norm_row, silu
from engine.kernels.cpu.simd import as_float, float_bits
from engine.kernels.reference_delta import NORM_EPS, DeltaWeights


def delta_net_step(
    qkvz: Tensor, ba: Tensor, weights: DeltaWeights, window: Tensor, state: Tensor, slots: Tensor, dtype: torch.dtype
) -> Tensor:
    """See `reference_delta.delta_net_step`."""
    if qkvz.dtype != torch.float32 or ba.dtype != torch.float32:
        return reference_delta.delta_net_step(qkvz, ba, weights, window, state, slots, dtype)
    count, value_heads, size = len(slots), *state.shape[1:3]
    output = torch.empty(count, value_heads, state.shape[3])
    products = 6 * count * value_heads * size * state.shape[3]
    arrays = (*weights.arrays, _array(window), _array(state), slots.numpy(), output.numpy())
    run(
        (_step_part, _step_all),
        products,
        qkvz.contiguous().numpy(),
        ba.contiguous().numpy(),
        weights.key_heads,
        weights.eps,
        *arrays,
    )
    return output if dtype == torch.float32 else output.to(dtype)


def _array(tensor: Tensor) -> Any:
    """A view; bfloat16 as its bits, for numpy has no such type."""
    return tensor.view(torch.uint16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()


def _read(x: Any) -> Any:
    """A float32, or a bfloat16's bits, as float32."""


@overload(_read)
def _choose_read(x: Any) -> Any:
    def same(x: Any) -> Any:
        return x

    def widened(x: Any) -> Any:
        return as_float(np.uint32(x) << np.uint32(16))

    return same if x == types.float32 else widened


def _stored(x: Any, array: Any) -> Any:
    """A float32 as elements of `array` are: itself, or the bits of the nearest bfloat16, of two the even one."""


@overload(_stored)
def _choose_stored(x: Any, array: Any) -> Any:
    def same(x: Any, array: Any) -> Any:
        return x

    def rounded(x: Any, array: Any) -> Any:
        bits = float_bits(x)
        return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))

    return same if array.dtype == types.float32 else rounded


@jit
def _unit(x: Any, factor: float) -> None:
    squares = np.float32(0)
    for i in range(len(x)):
        squares += x[i] * x[i]
    scale = np.float32(factor / math.sqrt(squares + NORM_EPS))
    for i in range(len(x)):
        x[i] *= scale


@jit
def _convolve(x: Any, taps: Any, window: Any, y: Any) -> None:
    """The newest inputs `x` [C] through their channels' taps [C, W] and windows [C, W - 1], which move on."""
    reach = window.shape[1]
    for channel in range(len(x)):
        mixed = x[channel] * taps[channel, reach]
        for tap in range(reach):
            mixed += _read(window[channel, tap]) * taps[channel, tap]
        for tap in range(reach - 1):
            window[channel, tap] = window[channel, tap + 1]
        window[channel, reach - 1] = _stored(x[channel], window)
        y[channel] = silu(mixed)


@jit
def _advance(memory: Any, query: Any, key: Any, value: Any, decay: Any, strength: Any, output: Any) -> None:
    """The rule of `reference_delta` for one head's state [K, V]; `value` becomes the change."""
    output[:] = 0
    for k in range(len(key)):
        for v in range(len(value)):
            output[v] += _read(memory[k, v]) * key[k]
    for v in range(len(value)):
        value[v] = strength * (value[v] - decay * output[v])
        output[v] = 0
    for k in range(len(key)):
        for v in range(len(value)):
            new = decay * _read(memory[k, v]) + key[k] * value[v]
            output[v] += new * query[k]
            memory[k, v] = _stored(new, memory)


@jit
def _gates(a: float, b: float, rate: float, bias: float) -> Any:
    """Decay e^g and write strength of `reference_delta.delta_gates`."""
    soft = a + bias if a + bias > 20 else math.log1p(math.exp(a + bias))
    return np.float32(math.exp(-rate * soft)), np.float32(1 / (1 + math.exp(-b)))


@jit
def _heads_inputs(x: Any, taps: Any, window: Any, head: int, heads: int, query: Any, key: Any, value: Any) -> None:
    """Convolve key head `head`'s channels, which lie in `x` side by side, into unit q and k, and v."""
    keys, size = len(query), len(value)
    first, second, third = head * keys, (heads + head) * keys, 2 * heads * keys + head * size
    _convolve(x[:keys], taps[first : first + keys], window[first : first + keys], query)
    _convolve(x[keys : 2 * keys], taps[second : second + keys], window[second : second + keys], key)
    _convolve(x[2 * keys : 2 * keys + size], taps[third : third + size], window[third : third + size], value)
    _unit(query, keys**-0.5)
    _unit(key, 1.0)


@jit
def _step_part(
    part: int, parts: int, qkvz: Any, ba: Any, heads: int, eps: float, taps: Any, rate: Any, bias: Any, norm: Any,
    window: Any, state: Any, slots: Any, output: Any,
) -> None:  # fmt: skip
    value_heads, keys, width = state.shape[1:]
    group, items = value_heads // heads, len(slots) * heads
    size = group * width
    query, key, value = np.empty(keys, np.float32), np.empty(keys, np.float32), np.empty(size, np.float32)
    for item in range(part * items // parts, (part + 1) * items // parts):
        row, head = item // heads, item % heads
        x = qkvz[row, head * 2 * (keys + size) : (head + 1) * 2 * (keys + size)]
        _heads_inputs(x, taps, window[slots[row]], head, heads, query, key, value)
        for member in range(group):
            place, at = head * group + member, 2 * head * group + member
            decay, strength = _gates(ba[row, at + group], ba[row, at], rate[place], bias[place])
            own, out = value[member * width : (member + 1) * width], output[row, place]
            _advance(state[slots[row], place], query, key, own, decay, strength, out)
            norm_row(out, norm, eps, out)
            for v in range(width):
                out[v] *= silu(x[2 * keys + size + member * width + v])


@parallel_jit
def _step_all(
    parts: int, qkvz: Any, ba: Any, heads: int, eps: float, taps: Any, rate: Any, bias: Any, norm: Any,
    window: Any, state: Any, slots: Any, output: Any,
) -> None:  # fmt: skip
    for part in prange(parts):
        _step_part(part, parts, qkvz, ba, heads, eps, taps, rate, bias, norm, window, state, slots, output)
