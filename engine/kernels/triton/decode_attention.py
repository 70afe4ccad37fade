"""Attention of single tokens over paged contexts, split over programs that share a context (split-KV).

A context is cut into chunks of `CHUNK` tokens; of one sequence's KV head, program p takes chunks p, p + PARTS, ... and
leaves a partial result, and a second kernel joins these in order. Neither number depends on the batch, so neither does
a sequence's result. Dao et al. 2023, "Flash-Decoding".
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.triton_matrix.operands import early
from engine.kernels.triton_matrix.tiles import await_inputs

CHUNK = 64
PARTS = 64
LEAST_ROWS = 16
"""Query rows that the matrix units take at least."""


@dataclass(frozen=True)
class Singles:
    """S single tokens: their rows of the step, context lengths and rows of the block tables, all int32 [S].

    `tables` are the step's block tables; a row of them starts every `width[0]` entries, a number that lies on the
    device so that a captured graph can read tables of any width. A context of 0 gives zeros.
    """

    rows: Tensor
    contexts: Tensor
    table_rows: Tensor
    tables: Tensor
    width: Tensor


def attend_singles(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    singles: Singles,
    scale: float,
    gate: Tensor | None,
    output: Tensor,
) -> None:
    """Write the attention of `singles` to their rows of `output` [T, H, D]; see `ops.FusedKernels.gated_attention`."""
    heads, width = query.shape[1:]
    block_size, kv_heads = key_cache.shape[1:3]
    count, shared = len(singles.rows), heads // kv_heads
    partial = torch.empty(count, heads, PARTS, width, dtype=torch.float32, device=query.device)
    sums = torch.empty(2, count, heads, PARTS, dtype=torch.float32, device=query.device)
    block = triton.next_power_of_2(width)
    _attend_part[(count, kv_heads, PARTS)](
        query,
        key_cache,
        value_cache,
        singles.rows,
        singles.contexts,
        singles.table_rows,
        singles.tables,
        singles.width,
        partial,
        sums[0],
        sums[1],
        scale,
        kv_heads,
        SHARED=shared,
        ROWS=max(LEAST_ROWS, triton.next_power_of_2(shared)),
        D=width,
        BLOCK=block,
        PAGE=block_size,
        CHUNK=CHUNK,
        PARTS=PARTS,
        num_warps=4,
        num_stages=2,
        **early(query),
    )
    gated = gate is not None
    strides = (gate.stride(0), gate.stride(1)) if gate is not None else (0, 0)
    _join_parts[(count, heads)](
        partial,
        sums[0],
        sums[1],
        singles.rows,
        singles.contexts,
        gate if gate is not None else query,
        output,
        *strides,
        D=width,
        BLOCK=block,
        CHUNK=CHUNK,
        PARTS=PARTS,
        GATED=gated,
        num_warps=4,
        **early(query),
    )


@triton.jit
def _attend_part(
    query,
    keys,
    values,
    rows,
    contexts,
    table_rows,
    tables,
    table_width,
    partial,
    largest,
    totals,
    scale,
    kv_heads,
    SHARED: tl.constexpr,
    ROWS: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    PAGE: tl.constexpr,
    CHUNK: tl.constexpr,
    PARTS: tl.constexpr,
    EARLY: tl.constexpr,
):
    await_inputs(EARLY)
    single, kv_head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    context = tl.load(contexts + single)
    if part * CHUNK >= context:
        return
    heads = kv_heads * SHARED
    row = tl.load(rows + single).to(tl.int64)
    table = tables + tl.load(table_rows + single).to(tl.int64) * tl.load(table_width)
    member, at, token = tl.arange(0, ROWS), tl.arange(0, BLOCK), tl.arange(0, CHUNK)
    head = kv_head * SHARED + member
    mine, inside = member < SHARED, at < D
    q = tl.load(
        query + (row * heads + head[:, None]) * D + at[None, :], mask=mine[:, None] & inside[None, :], other=0.0
    ).to(keys.dtype.element_ty)
    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    sums = tl.zeros([ROWS, BLOCK], tl.float32)
    for start in range(part * CHUNK, context, PARTS * CHUNK):
        position = start + token
        known = position < context
        block = tl.load(table + position // PAGE, mask=known, other=0).to(tl.int64)
        place = ((block * PAGE + position % PAGE) * kv_heads + kv_head) * D
        where, used = place[:, None] + at[None, :], known[:, None] & inside[None, :]
        k = tl.load(keys + where, mask=used, other=0.0)
        v = tl.load(values + where, mask=used, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="tf32x3") * scale
        scores = tl.where(known[None, :], scores, float("-inf"))
        peak = tl.maximum(top, tl.max(scores, 1))
        shrink, p = tl.exp(top - peak), tl.exp(scores - peak[:, None])
        total = total * shrink + tl.sum(p, 1)
        sums = sums * shrink[:, None] + tl.dot(p.to(v.dtype), v, input_precision="tf32x3")
        top = peak
    out = (single.to(tl.int64) * heads + head) * PARTS + part
    tl.store(partial + out[:, None] * D + at[None, :], sums, mask=mine[:, None] & inside[None, :])
    tl.store(largest + out, top, mask=mine)
    tl.store(totals + out, total, mask=mine)


@triton.jit
def _join_parts(
    partial,
    largest,
    totals,
    rows,
    contexts,
    gate,
    output,
    gate_stride,
    gate_head_stride,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    PARTS: tl.constexpr,
    GATED: tl.constexpr,
    EARLY: tl.constexpr,
):
    await_inputs(EARLY)
    single, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    heads = tl.num_programs(1)
    context, row = tl.load(contexts + single), tl.load(rows + single).to(tl.int64)
    parts = tl.minimum(tl.cdiv(context, CHUNK), PARTS)
    part, at = tl.arange(0, PARTS), tl.arange(0, BLOCK)
    inside, mine = at < D, (single * heads + head) * PARTS
    tops = tl.load(largest + mine + part, mask=part < parts, other=float("-inf"))
    peak = tl.max(tops, 0)
    weights = tl.where(part < parts, tl.exp(tops - peak), 0.0)
    total = tl.sum(weights * tl.load(totals + mine + part, mask=part < parts, other=0.0), 0)
    sums = tl.zeros([BLOCK], tl.float32)
    for each in range(parts):
        weight = tl.exp(tl.load(largest + mine + each) - peak)
        sums += weight * tl.load(partial + (mine + each) * D + at, mask=inside, other=0.0)
    result = tl.where(context > 0, sums / tl.where(total > 0, total, 1.0), 0.0)
    if GATED:
        g = tl.load(gate + row * gate_stride + head * gate_head_stride + at, mask=inside, other=0.0).to(tl.float32)
        result *= tl.sigmoid(g)
    tl.store(output + (row * heads + head) * D + at, result.to(output.dtype.element_ty), mask=inside)
