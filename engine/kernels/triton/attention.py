"""Attention's parts around the scores: head norms, rotation and KV store in one kernel, and the plan of a step."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.ops import HeadNorms, MixedNumbers
from engine.kernels.triton.decode_attention import Singles, attend_singles
from engine.kernels.triton.prefill_attention import Runs, attend_runs
from engine.kernels.triton.run_plan import RunPlan
from engine.kernels.triton_matrix.operands import early
from engine.kernels.triton_matrix.tiles import await_inputs


@dataclass(frozen=True)
class AttentionPlan:
    """Single tokens and longer runs of a step; either may be absent, and if `padded` there are rows of neither."""

    singles: Singles | None
    runs: Runs | None
    padded: bool = False


def plan_attention(
    block_tables: Tensor, query_lens: tuple[int, ...], context_lens: tuple[int, ...], block_size: int
) -> AttentionPlan:
    """See `reference.plan_attention`; all numbers reach the device in one transfer."""
    starts = [0]
    for length in query_lens:
        starts.append(starts[-1] + length)
    alone = [row for row, length in enumerate(query_lens) if length == 1]
    long = [row for row, length in enumerate(query_lens) if length > 1]
    single_rows = [(starts[row], context_lens[row], row) for row in alone]
    runs = [(starts[row], query_lens[row], context_lens[row], row) for row in long]
    width, device = block_tables.shape[1], block_tables.device
    numbers = [width, *(value for column in zip(*single_rows, strict=True) for value in column)]
    numbers += [value for run in runs for value in run]
    sent = _to_device(numbers, device)
    count = len(alone)
    rows, contexts, tables = sent[1 : 1 + count], sent[1 + count : 1 + 2 * count], sent[1 + 2 * count : 1 + 3 * count]
    described = sent[1 + 3 * count :].view(-1, 4)
    longest = max((query_lens[row] for row in long), default=0)
    return AttentionPlan(
        Singles(rows, contexts, tables, block_tables, sent[:1]) if alone else None,
        Runs(described, block_tables, sent[:1], longest) if runs else None,
    )


def plan_singles(contexts: Tensor, tables: Tensor, width: Tensor) -> AttentionPlan:
    """See `ops.FusedKernels.plan_singles`."""
    rows = torch.arange(len(contexts), dtype=torch.int32, device=contexts.device)
    return AttentionPlan(Singles(rows, contexts, rows, tables, width), None)


def plan_mixed(numbers: MixedNumbers) -> tuple[AttentionPlan, RunPlan]:
    """See `ops.FusedKernels.plan_mixed`."""
    contexts = numbers.single_contexts
    rows = torch.arange(len(contexts), dtype=torch.int32, device=contexts.device)
    singles = Singles(rows, contexts, rows, numbers.tables, numbers.width)
    runs = Runs(numbers.run_contexts, numbers.tables, numbers.width, numbers.tokens)
    states = RunPlan(numbers.state_slots, numbers.runs, numbers.chunks, numbers.places, padded=True)
    return AttentionPlan(singles, runs, padded=True), states


def _to_device(numbers: list[int], device: torch.device) -> Tensor:
    host = torch.tensor(numbers, dtype=torch.int32)
    return (host.pin_memory() if device.type == "cuda" else host).to(device, non_blocking=True)


def gated_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    plan: AttentionPlan,
    scale: float,
    gate: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """See `ops.FusedKernels.gated_attention`."""
    output = (torch.zeros if plan.padded else torch.empty)(query.shape, dtype=dtype, device=query.device)
    if plan.singles is not None:
        attend_singles(query, key_cache, value_cache, plan.singles, scale, gate, output)
    if plan.runs is not None:
        attend_runs(query, key_cache, value_cache, plan.runs, scale, gate, output)
    return output


def paged_attention(query: Tensor, key_cache: Tensor, value_cache: Tensor, plan: AttentionPlan, scale: float) -> Tensor:
    """See `reference.paged_attention`."""
    return gated_attention(query, key_cache, value_cache, plan, scale, None, query.dtype)


def norm_rotate_and_store(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    norms: HeadNorms | None,
    cos: Tensor,
    sin: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slots: Tensor,
) -> Tensor:
    """See `ops.FusedKernels.norm_rotate_and_store`."""
    tokens, heads, width = query.shape
    kv_heads = key.shape[1]
    rotated = torch.empty(tokens, heads, width, dtype=key_cache.dtype, device=query.device)
    if not tokens:
        return rotated
    weights = (norms.query, norms.key, norms.eps) if norms is not None else (query, query, 0.0)
    _norm_rotate_and_store[(tokens, heads + kv_heads)](
        query,
        key,
        value,
        *weights,
        cos,
        sin,
        rotated,
        key_cache,
        value_cache,
        slots,
        query.stride(0),
        query.stride(1),
        key.stride(0),
        value.stride(0),
        heads,
        kv_heads,
        D=width,
        BLOCK=triton.next_power_of_2(width),
        HALF=cos.shape[-1],
        NORMED=norms is not None,
        num_warps=2,
        **early(query),
    )
    return rotated


@triton.jit
def _norm_rotate(x, weight, cos, sin, eps, token, D: tl.constexpr, BLOCK: tl.constexpr, HALF: tl.constexpr,
                 NORMED: tl.constexpr):  # fmt: skip
    """One head at `x`, normed if `NORMED`, its first 2 · HALF dimensions rotated in the pairing (i, i + HALF)."""
    at = tl.arange(0, BLOCK)
    here = at < D
    partner = tl.where(at < HALF, at + HALF, tl.where(at < 2 * HALF, at - HALF, at))
    own = tl.load(x + at, mask=here, other=0.0).to(tl.float32)
    other = tl.load(x + partner, mask=here, other=0.0).to(tl.float32)
    if NORMED:
        scale = tl.rsqrt(tl.sum(own * own, 0) / D + eps)
        own *= scale * tl.load(weight + at, mask=here, other=0.0)
        other *= scale * tl.load(weight + partner, mask=here, other=0.0)
    turned = at < 2 * HALF
    angle = token * HALF + at % HALF
    c = tl.load(cos + angle, mask=turned, other=1.0)
    s = tl.load(sin + angle, mask=turned, other=0.0)
    return own * c + tl.where(at < HALF, -other, other) * s


@triton.jit
def _norm_rotate_and_store(
    query,
    key,
    value,
    query_weight,
    key_weight,
    eps,
    cos,
    sin,
    rotated,
    key_cache,
    value_cache,
    slots,
    query_stride,
    head_stride,
    key_stride,
    value_stride,
    heads,
    kv_heads,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    HALF: tl.constexpr,
    NORMED: tl.constexpr,
    EARLY: tl.constexpr,
):
    await_inputs(EARLY)
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    at = tl.arange(0, BLOCK)
    here = at < D
    if head < heads:
        x = query + token * query_stride + head * head_stride
        turned = _norm_rotate(x, query_weight, cos, sin, eps, token, D, BLOCK, HALF, NORMED)
        place = rotated + (token * heads + head) * D + at
        tl.store(place, turned.to(rotated.dtype.element_ty), mask=here)
    else:
        kv_head = head - heads
        slot = tl.load(slots + token).to(tl.int64)
        if slot >= 0:
            turned = _norm_rotate(
                key + token * key_stride + kv_head * D, key_weight, cos, sin, eps, token, D, BLOCK, HALF, NORMED
            )
            place = (slot * kv_heads + kv_head) * D + at
            tl.store(key_cache + place, turned.to(key_cache.dtype.element_ty), mask=here)
            own = tl.load(value + token * value_stride + kv_head * D + at, mask=here, other=0.0)
            tl.store(value_cache + place, own.to(value_cache.dtype.element_ty), mask=here)
