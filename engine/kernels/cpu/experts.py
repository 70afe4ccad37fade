"""Gated MLPs on CPU, of a dense layer and of chosen experts: gate, up, activation and down in one call.

A few tokens take each of their experts by itself, one dot product after another in the order of rows, so that only the
chosen experts' bytes are read, and a token's result depends on nothing else in the batch.
"""

from functools import cache
from typing import Any

import numpy as np
import torch
from numba import prange
from numba.extending import register_jitable
from torch import Tensor

from engine.kernels import reference_moe
from engine.kernels.cpu.compiler import jit, parallel_jit, threads
from engine.kernels.cpu.elementwise import silu, silu_mul
from engine.kernels.cpu.packed import ROWS, UNIT, expert_product, rows_product
from engine.kernels.cpu.simd import decay, floats_at
from engine.kernels.reference_moe import Experts, Linear, Linears

FEW_TOKENS = 8
"""Tokens up to which sharing an expert's unpacked rows among those that chose it saves less than sorting costs."""


def gated_mlp(x: Tensor, gate_up: Linears, down: Linear) -> Tensor:
    """See `reference.gated_mlp`."""
    if x.dtype != torch.float32 or gate_up.own is None or down.own is None or down.bias is not None:
        return down(silu_mul(*gate_up(x)))
    (kind, pair), (down_kind, last) = gate_up.own, down.own
    tokens, columns = x.shape
    inner, out = pair.rows[0], last.rows[0]
    x, between, y = x.contiguous(), torch.empty(2, tokens, inner), torch.empty(tokens, out)
    parts = threads(tokens * inner * (2 * columns + out))
    serial, parallel = _dense(kind, down_kind)
    addresses = x.data_ptr(), between.data_ptr(), y.data_ptr()
    (serial if parts == 1 else parallel)(parts, pair.table, last.table, tokens, columns, *addresses)
    return y


def route(logits: Tensor, top_k: int, renormalise: bool) -> tuple[Tensor, Tensor]:
    """See `reference.route`."""
    tokens = logits.shape[0]
    if tokens > FEW_TOKENS or logits.dtype != torch.float32:
        return reference_moe.route(logits, top_k, renormalise)
    weights, experts = torch.empty(tokens, top_k), torch.empty(tokens, top_k, dtype=torch.int64)
    _route(logits.contiguous().numpy(), renormalise, weights.numpy(), experts.numpy())
    return weights, experts


def moe(x: Tensor, gate_up: Experts, down: Experts, weights: Tensor, experts: Tensor) -> Tensor:
    """See `reference.moe`; the terms of each of a few tokens are added in the order of its choices."""
    tokens, choices = experts.shape
    upper, lower = gate_up.own, down.own
    if tokens > FEW_TOKENS or x.dtype != torch.float32 or upper is None or lower is None:
        return reference_moe.moe(x, gate_up, down, weights, experts)
    kinds = upper[0][0], upper[-1][0], lower[0][0]
    tables = upper[0][1].table, upper[-1][1].table, lower[0][1].table
    hidden, inner = down.shape[1:]
    x, between, y = x.contiguous(), torch.empty(2, tokens * choices, inner), torch.empty(tokens, hidden)
    parts = threads(3 * tokens * choices * hidden * inner)
    serial, parallel = _experts(*kinds)
    addresses = x.data_ptr(), between.data_ptr(), y.data_ptr()
    chosen = experts.contiguous().numpy(), weights.contiguous().numpy()
    (serial if parts == 1 else parallel)(parts, *tables, *chosen, hidden, inner, *addresses)
    return y


@jit
def _route(logits: Any, renormalise: bool, weights: Any, experts: Any) -> None:
    for token in range(len(logits)):
        row, chosen, shares = logits[token].copy(), experts[token], weights[token]
        most, total = row.max(), np.float32(0)
        for i in range(len(row)):
            total += decay(row[i] - most)
        taken = np.float32(0)
        for choice in range(len(chosen)):
            best = row.argmax()
            chosen[choice], shares[choice] = best, decay(row[best] - most)
            taken += shares[choice]
            row[best] = -np.inf
        shares /= taken if renormalise else total


@cache
def _dense(kind: int, down_kind: int) -> tuple[Any, Any]:
    """A dense gated MLP for the formats of gate and up, and of down."""

    @jit
    def serial(parts: int, pair: Any, down: Any, tokens: int, columns: int, x: int, between: int, y: int) -> None:
        _dense_upper(kind, 0, 1, pair, tokens, columns, x, between)
        _dense_lower(down_kind, 0, 1, down, tokens, pair[0, ROWS], between, y)

    @parallel_jit
    def parallel(parts: int, pair: Any, down: Any, tokens: int, columns: int, x: int, between: int, y: int) -> None:
        for part in prange(parts):
            _dense_upper(kind, part, parts, pair, tokens, columns, x, between)
        for part in prange(parts):
            _dense_lower(down_kind, part, parts, down, tokens, pair[0, ROWS], between, y)

    return serial, parallel


@register_jitable
def _dense_upper(kind: int, part: int, parts: int, pair: Any, tokens: int, columns: int, x: int, between: int) -> None:
    inner = pair[0, ROWS]
    first, last = part * inner // parts, (part + 1) * inner // parts
    gates, ups = between, between + 4 * tokens * inner
    rows_product(kind, pair, 0, first, last, x, tokens, columns, gates)
    rows_product(kind, pair, 1, first, last, x, tokens, columns, ups)
    for token in range(tokens):
        start = token * inner + first
        gate, up = floats_at(gates + 4 * start, last - first), floats_at(ups + 4 * start, last - first)
        for i in range(last - first):
            gate[i] = silu(gate[i]) * up[i]


@register_jitable
def _dense_lower(kind: int, part: int, parts: int, down: Any, tokens: int, inner: int, between: int, y: int) -> None:
    rows = down[0, ROWS]
    rows_product(kind, down, 0, part * rows // parts, (part + 1) * rows // parts, between, tokens, inner, y)


@cache
def _experts(gate_kind: int, up_kind: int, down_kind: int) -> tuple[Any, Any]:
    """Chosen experts for the formats of their gate, up and down matrices."""

    @jit
    def serial(
        parts: int, gate: Any, up: Any, down: Any, experts: Any, weights: Any, hidden: int, inner: int,
        x: int, between: int, y: int,
    ) -> None:  # fmt: skip
        _experts_upper(gate_kind, up_kind, 0, 1, gate, up, experts, hidden, inner, x, between)
        _experts_lower(down_kind, 0, 1, down, experts, weights, hidden, inner, between, y)

    @parallel_jit
    def parallel(
        parts: int, gate: Any, up: Any, down: Any, experts: Any, weights: Any, hidden: int, inner: int,
        x: int, between: int, y: int,
    ) -> None:  # fmt: skip
        for part in prange(parts):
            _experts_upper(gate_kind, up_kind, part, parts, gate, up, experts, hidden, inner, x, between)
        for part in prange(parts):
            _experts_lower(down_kind, part, parts, down, experts, weights, hidden, inner, between, y)

    return serial, parallel


@register_jitable
def _experts_upper(
    gate_kind: int, up_kind: int, part: int, parts: int, gate: Any, up: Any, experts: Any, hidden: int, inner: int,
    x: int, out: int,
) -> None:  # fmt: skip
    """Every (token, choice) pair's activations; up's rows follow gate's where these are one matrix."""
    choices, units, below = experts.shape[1], hidden // UNIT, up[0, ROWS] - inner
    rows, ups = experts.size * inner, out + 4 * experts.size * inner
    first, last = part * rows // parts, (part + 1) * rows // parts
    for pair in range(first // inner, (last + inner - 1) // inner):
        token, start = pair // choices, pair * inner
        expert, at = experts[token, pair - token * choices], x + 4 * token * hidden
        low, high = max(first - start, 0), min(last - start, inner)
        to_gate, to_up = out + 4 * (start + low), ups + 4 * (start + low)
        expert_product(gate_kind, gate, expert, low, high, at, units, to_gate)
        expert_product(up_kind, up, expert, below + low, below + high, at, units, to_up)
        gates, linear = floats_at(to_gate, high - low), floats_at(to_up, high - low)
        for i in range(high - low):
            gates[i] = silu(gates[i]) * linear[i]


@register_jitable
def _experts_lower(
    kind: int, part: int, parts: int, down: Any, experts: Any, weights: Any, hidden: int, inner: int, between: int,
    y: int,
) -> None:  # fmt: skip
    tokens, choices = experts.shape
    first, last = part * hidden // parts, (part + 1) * hidden // parts
    terms = np.empty(last - first, np.float32)
    for token in range(tokens):
        out = floats_at(y + 4 * (token * hidden + first), last - first)
        out[:] = 0
        for choice in range(choices):
            at, share = between + 4 * (token * choices + choice) * inner, weights[token, choice]
            expert = experts[token, choice]
            expert_product(kind, down, expert, first, last, at, inner // UNIT, np.int64(terms.ctypes.data))
            for row in range(last - first):
                out[row] += share * terms[row]
