"""Attention of runs of new tokens over paged contexts, prefix included: one kernel for all runs of a step.

A program has a tile of tokens with all query heads of one KV head as its rows, so that keys and values are read once
for these. Softmax goes along the context in blocks (Dao et al. 2022); blocks that all rows see need no mask.
"""

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

TILE_ROWS = 128
KEYS = 64


@dataclass(frozen=True)
class Runs:
    """R runs: int32 [R, 4] of first row, new tokens, context (new tokens included) and row of the block tables.

    A row of `tables` starts every `width[0]` entries. No run has more than `longest` new tokens; one may have none.
    """

    described: Tensor
    tables: Tensor
    width: Tensor
    longest: int


def attend_runs(
    query: Tensor, key_cache: Tensor, value_cache: Tensor, runs: Runs, scale: float, gate: Tensor | None, output: Tensor
) -> None:
    """Write the attention of `runs` to their rows of `output` [T, H, D]; see `ops.FusedKernels.gated_attention`."""
    heads, width = query.shape[1:]
    block_size, kv_heads = key_cache.shape[1:3]
    shared = heads // kv_heads
    padded = triton.next_power_of_2(shared)
    # Float32 fills shared memory twice as fast as bfloat16.
    narrow = 4 // key_cache.itemsize
    tokens = max(1, TILE_ROWS * narrow // 2 // padded)
    _attend_tile[(triton.cdiv(runs.longest, tokens), kv_heads, len(runs.described))](
        query,
        key_cache,
        value_cache,
        runs.described,
        runs.tables,
        gate if gate is not None else query,
        output,
        scale * 1.4426950408889634,
        kv_heads,
        runs.width,
        *((gate.stride(0), gate.stride(1)) if gate is not None else (0, 0)),
        SHARED=shared,
        PADDED=padded,
        TOKENS=tokens,
        D=width,
        BLOCK=triton.next_power_of_2(width),
        PAGE=block_size,
        KEYS=KEYS * narrow // 2,
        GATED=gate is not None,
        num_warps=8,
        num_stages=narrow,
    )


@triton.jit
def _absorb(
    q,
    keys,
    values,
    table,
    start,
    seen,
    top,
    total,
    sums,
    scale,
    kv_head,
    kv_heads,
    at,
    D: tl.constexpr,
    PAGE: tl.constexpr,
    KEYS: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Take keys `start` to `start + KEYS` into the running softmax; row i sees the first `seen[i]` tokens."""
    position = start + tl.arange(0, KEYS)
    block = tl.load(table + position // PAGE, mask=position < tl.max(seen, 0), other=0).to(tl.int64)
    place = ((block * PAGE + position % PAGE) * kv_heads + kv_head) * D
    where = place[:, None] + at[None, :]
    k = tl.load(keys + where, mask=(at < D)[None, :], other=0.0)
    scores = tl.dot(q, tl.trans(k), input_precision="tf32x3") * scale
    if MASKED:
        scores = tl.where(position[None, :] < seen[:, None], scores, float("-inf"))
    peak = tl.maximum(top, tl.max(scores, 1))
    shrink, p = tl.exp2(top - peak), tl.exp2(scores - peak[:, None])
    v = tl.load(values + where, mask=(at < D)[None, :], other=0.0)
    sums = tl.dot(p.to(v.dtype), v, sums * shrink[:, None], input_precision="tf32x3")
    return peak, total * shrink + tl.sum(p, 1), sums


@triton.jit
def _attend_tile(
    query,
    keys,
    values,
    runs,
    tables,
    gate,
    output,
    scale,
    kv_heads,
    table_width,
    gate_stride,
    gate_head_stride,
    SHARED: tl.constexpr,
    PADDED: tl.constexpr,
    TOKENS: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    PAGE: tl.constexpr,
    KEYS: tl.constexpr,
    GATED: tl.constexpr,
):
    # Late tiles have the longest contexts: they start first.
    tile, kv_head, run = tl.num_programs(0) - 1 - tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first, count = tl.load(runs + run * 4).to(tl.int64), tl.load(runs + run * 4 + 1)
    context = tl.load(runs + run * 4 + 2)
    if tile * TOKENS >= count:
        return
    table = tables + tl.load(runs + run * 4 + 3).to(tl.int64) * tl.load(table_width)
    row, at = tl.arange(0, TOKENS * PADDED), tl.arange(0, BLOCK)
    token, head = tile * TOKENS + row // PADDED, kv_head * SHARED + row % PADDED
    here = ((token < count) & (row % PADDED < SHARED))[:, None] & (at < D)[None, :]
    heads = kv_heads * SHARED
    place = (first + token) * heads + head
    q = tl.load(query + place[:, None] * D + at[None, :], mask=here, other=0.0).to(keys.dtype.element_ty)
    seen = tl.minimum(context - count + token + 1, context)
    top = tl.full([TOKENS * PADDED], float("-inf"), tl.float32)
    total = tl.zeros([TOKENS * PADDED], tl.float32)
    sums = tl.zeros([TOKENS * PADDED, BLOCK], tl.float32)
    whole = (context - count + tile * TOKENS + 1) // KEYS * KEYS
    last = tl.minimum(context - count + tile * TOKENS + TOKENS, context)
    for start in range(0, whole, KEYS):
        top, total, sums = _absorb(
            q, keys, values, table, start, seen, top, total, sums, scale, kv_head, kv_heads, at, D, PAGE, KEYS, False
        )
    for start in range(whole, last, KEYS):
        top, total, sums = _absorb(
            q, keys, values, table, start, seen, top, total, sums, scale, kv_head, kv_heads, at, D, PAGE, KEYS, True
        )
    result = sums / total[:, None]
    if GATED:
        where = gate + (first + token)[:, None] * gate_stride + head[:, None] * gate_head_stride + at[None, :]
        result *= tl.sigmoid(tl.load(where, mask=here, other=0.0).to(tl.float32))
    tl.store(output + place[:, None] * D + at[None, :], result.to(output.dtype.element_ty), mask=here)
