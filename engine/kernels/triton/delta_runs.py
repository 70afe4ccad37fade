"""A DeltaNet layer over runs of new tokens, between the projections in and out, in five kernels.

Convolution; the window; what each chunk of 64 tokens can compute alone (the inverse of its triangular system, and the
scores of its queries); the state through the chunks of a run, one program per value head and slice of its values; the
gated norm. Formulas and names: `reference_delta.delta_rule_chunked`, with U and W left out, for

    V' = U − W S = (I + A)⁻¹ β (v − e^G k S)

reads less and multiplies bfloat16 inputs as they are. A float32 factor goes into such a product as the sum of two
bfloat16 numbers, which keeps 16 bits of it: within a chunk errors are not corrected as the sequential rule would.

"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.reference_delta import CHUNK, DeltaWeights
from engine.kernels.triton.run_plan import RunPlan
from engine.kernels.triton.triangular import dot, halves, invert

TOKENS = 32
"""Tokens of a program of the convolution."""

GATED_HEADS = 16
"""Heads of a program of the gated norm."""

VALUES = 32
"""Columns of a state that one program carries through a run."""


def delta_net_runs(
    qkvz: Tensor,
    ba: Tensor,
    weights: DeltaWeights,
    window: Tensor,
    recurrent: Tensor,
    plan: RunPlan,
    dtype: torch.dtype,
) -> Tensor:
    """See `ops.FusedKernels.delta_net_runs`."""
    mixed = convolve_runs(qkvz, weights, window, recurrent, plan)
    return gate_runs(delta_rule_runs(mixed, ba, weights, recurrent, plan), qkvz, weights, dtype)


def convolve_runs(qkvz: Tensor, weights: DeltaWeights, window: Tensor, recurrent: Tensor, plan: RunPlan) -> Tensor:
    """Un-interleave and convolve: [T, Hk (2K + 2rV)] to q|k|v [T, channels]; the windows move on."""
    tokens, channels = len(qkvz), window.shape[1]
    mixed = torch.empty(tokens, channels, dtype=qkvz.dtype, device=qkvz.device)
    shape = _shape(weights, recurrent)
    shape |= {"BLOCK": triton.next_power_of_2(max(shape["K"], shape["V"])), "TAPS": weights.conv.shape[1]}
    pieces = 2 * weights.key_heads + recurrent.shape[1]
    common = (qkvz, window, plan.slots, plan.runs)
    strides = (qkvz.stride(0), window.stride(0))
    _convolve[(triton.cdiv(tokens, TOKENS), pieces)](
        *common, plan.tokens, weights.conv, mixed, tokens, channels, *strides, TOKENS=TOKENS, num_warps=4, **shape
    )
    _move_windows[(len(plan.runs), pieces)](*common, *strides, num_warps=4, **shape)
    return mixed


def delta_rule_runs(mixed: Tensor, ba: Tensor, weights: DeltaWeights, recurrent: Tensor, plan: RunPlan) -> Tensor:
    """The gated delta rule over runs of q|k|v `mixed` [T, channels]: float32 [T, Hv, V]; the states move on."""
    heads, _, value_dim = recurrent.shape[1:]
    tokens, chunks, device, shape = len(mixed), len(plan.chunks), mixed.device, _shape(weights, recurrent)
    systems, scores = torch.empty(2, chunks, heads, CHUNK, CHUNK, dtype=torch.float32, device=device)
    strengths = torch.empty(chunks, heads, CHUNK, dtype=torch.float32, device=device)
    factors = torch.empty(3, tokens, heads, dtype=torch.float32, device=device)
    output = (torch.zeros if plan.padded else torch.empty)(tokens, heads, value_dim, dtype=torch.float32, device=device)
    gates = (weights.decay_rate, weights.dt_bias)
    _describe_chunks[(chunks, heads)](
        mixed,
        ba,
        *gates,
        plan.chunks,
        systems,
        scores,
        strengths,
        *factors,
        mixed.stride(0),
        ba.stride(0),
        CHUNK=CHUNK,
        num_warps=4,
        **shape,
    )
    inverse = invert(systems, strengths, mixed.dtype)
    values = min(VALUES, value_dim)
    _carry_state[(value_dim // values, heads, len(plan.runs))](
        mixed,
        plan.runs,
        plan.slots,
        *inverse,
        scores,
        *factors,
        output,
        recurrent,
        mixed.stride(0),
        recurrent.stride(0),
        CHUNK=CHUNK,
        VALUES=values,
        num_warps=4,
        num_stages=2,
        **shape,
    )
    return output


def gate_runs(x: Tensor, qkvz: Tensor, weights: DeltaWeights, dtype: torch.dtype) -> Tensor:
    """`gated_rms_norm` of `x` float32 [T, Hv, V] by the z in `qkvz`, in `dtype`."""
    tokens, heads, width = x.shape
    output = torch.empty(tokens, heads, width, dtype=dtype, device=x.device)
    block, shared = min(GATED_HEADS, triton.next_power_of_2(heads)), heads // weights.key_heads
    _gate[(tokens, triton.cdiv(heads, block))](
        x,
        qkvz,
        weights.norm,
        output,
        weights.eps,
        heads,
        qkvz.stride(0),
        qkvz.shape[1] // weights.key_heads,
        SHARED=shared,
        V=width,
        BLOCK=block,
        num_warps=4,
    )
    return output


def _shape(weights: DeltaWeights, recurrent: Tensor) -> dict[str, int]:
    heads, key_dim, value_dim = recurrent.shape[1:]
    return {"HEADS": weights.key_heads, "SHARED": heads // weights.key_heads, "K": key_dim, "V": value_dim}


@triton.jit
def _piece(piece, HEADS: tl.constexpr, SHARED: tl.constexpr, K: tl.constexpr, V: tl.constexpr):
    """Where head `piece` of the order q, k, v starts among the projection's columns and the channels, its width."""
    group = 2 * K + 2 * SHARED * V
    head = piece % HEADS
    value_head = piece - 2 * HEADS
    if piece < HEADS:
        column, channel, width = head * group, head * K, K
    elif piece < 2 * HEADS:
        column, channel, width = head * group + K, (HEADS + head) * K, K
    else:
        column = value_head // SHARED * group + 2 * K + value_head % SHARED * V
        channel, width = 2 * HEADS * K + value_head * V, V
    return column, channel, width


@triton.jit
def _convolve(
    qkvz,
    windows,
    slots,
    runs,
    places,
    weight,
    mixed,
    tokens,
    channels,
    qkvz_stride,
    window_stride,
    HEADS: tl.constexpr,
    SHARED: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    BLOCK: tl.constexpr,
    TAPS: tl.constexpr,
    TOKENS: tl.constexpr,
):
    column, channel, width = _piece(tl.program_id(1), HEADS, SHARED, K, V)
    row, at = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS), tl.arange(0, BLOCK)
    live, inside = row < tokens, at < width
    here = live[:, None] & inside[None, :]
    place = tl.load(places + row * 2, mask=live, other=TAPS)
    source = qkvz + row.to(tl.int64)[:, None] * qkvz_stride + (column + at)[None, :]
    total = tl.zeros([TOKENS, BLOCK], tl.float32)
    for tap in tl.static_range(TAPS):
        back = TAPS - 1 - tap
        x = tl.load(source - back * qkvz_stride, mask=here & (place >= back)[:, None], other=0.0)
        scale = tl.load(weight + (channel + at) * TAPS + tap, mask=inside, other=0.0)
        total += x.to(tl.float32) * scale[None, :]
    if tl.min(place, 0) < TAPS - 1:
        run = tl.load(places + row * 2 + 1, mask=live, other=0)
        window = windows + tl.load(slots + run, mask=live, other=0).to(tl.int64) * window_stride
        older = window[:, None] + (channel + at)[None, :] * (TAPS - 1)
        for tap in tl.static_range(TAPS - 1):
            seen = place + tap
            early = here & (seen < TAPS - 1)[:, None]
            known = tl.load(older + seen[:, None], mask=early, other=0.0).to(tl.float32)
            total += known * tl.load(weight + (channel + at) * TAPS + tap, mask=inside, other=0.0)[None, :]
    result = total * tl.sigmoid(total)
    where = mixed + row.to(tl.int64)[:, None] * channels + (channel + at)[None, :]
    tl.store(where, result.to(mixed.dtype.element_ty), mask=here)


@triton.jit
def _move_windows(
    qkvz,
    windows,
    slots,
    runs,
    qkvz_stride,
    window_stride,
    HEADS: tl.constexpr,
    SHARED: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    BLOCK: tl.constexpr,
    TAPS: tl.constexpr,
):
    run = tl.program_id(0)
    column, channel, width = _piece(tl.program_id(1), HEADS, SHARED, K, V)
    first, count = tl.load(runs + run * 3).to(tl.int64), tl.load(runs + run * 3 + 1)
    if count == 0:
        return
    at = tl.arange(0, BLOCK)
    inside = at < width
    window = windows + tl.load(slots + run).to(tl.int64) * window_stride + (channel + at) * (TAPS - 1)
    # In rising order: what a short run shifts is read before it is overwritten.
    for place in tl.static_range(TAPS - 1):
        back = TAPS - 1 - place
        if count >= back:
            x = tl.load(qkvz + (first + count - back) * qkvz_stride + column + at, mask=inside)
            tl.store(window + place, x.to(windows.dtype.element_ty), mask=inside)
        else:
            tl.store(window + place, tl.load(window + place + count, mask=inside), mask=inside)


@triton.jit
def _describe_chunks(
    mixed,
    ba,
    decay_rate,
    dt_bias,
    chunks,
    systems,
    scores,
    strengths,
    totals,
    query_factors,
    key_factors,
    mixed_stride,
    ba_stride,
    HEADS: tl.constexpr,
    SHARED: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Of one chunk and value head: A, β, the scores, G, and what makes q and k into e^G q and unit k."""
    chunk, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    heads, key_head = HEADS * SHARED, head // SHARED
    first, count = tl.load(chunks + chunk * 2).to(tl.int64), tl.load(chunks + chunk * 2 + 1)
    token, at = tl.arange(0, CHUNK), tl.arange(0, K)
    live, row = token < count, first + token

    gates = ba + row * ba_stride + key_head * 2 * SHARED + head % SHARED
    strength = tl.where(live, tl.sigmoid(tl.load(gates, mask=live, other=0.0).to(tl.float32)), 0.0)
    a = tl.load(gates + SHARED, mask=live, other=0.0).to(tl.float32) + tl.load(dt_bias + head)
    softplus = tl.where(a > 20.0, a, tl.log(1.0 + tl.exp(tl.minimum(a, 20.0))))
    total = tl.cumsum(tl.where(live, -tl.load(decay_rate + head) * softplus, 0.0), 0)

    line = mixed + row[:, None] * mixed_stride + key_head * K + at[None, :]
    q = tl.load(line, mask=live[:, None], other=0.0)
    k = tl.load(line + HEADS * K, mask=live[:, None], other=0.0)
    wide_q, wide_k = q.to(tl.float32), k.to(tl.float32)
    unit_q = tl.rsqrt(tl.sum(wide_q * wide_q, 1) + 1e-6) * (K**-0.5)
    unit_k = tl.rsqrt(tl.sum(wide_k * wide_k, 1) + 1e-6)
    place = row * heads + head
    tl.store(totals + place, total, mask=live)
    tl.store(query_factors + place, unit_q * tl.exp(total), mask=live)
    tl.store(key_factors + place, unit_k, mask=live)

    above = token[:, None] >= token[None, :]
    decay = tl.exp(tl.where(above, total[:, None] - total[None, :], float("-inf"))) * unit_k[None, :]
    square = (chunk * heads + head) * CHUNK * CHUNK + token[:, None] * CHUNK + token[None, :]
    tl.store(scores + square, dot(q, tl.trans(k)) * decay * unit_q[:, None])
    system = dot(k, tl.trans(k)) * decay * (strength * unit_k)[:, None]
    tl.store(systems + square, tl.where(token[:, None] > token[None, :], system, 0.0))
    tl.store(strengths + (chunk * heads + head) * CHUNK + token, strength)


@triton.jit
def _carry_state(
    mixed,
    runs,
    slots,
    inverse_high,
    inverse_low,
    scores,
    totals,
    query_factors,
    key_factors,
    output,
    states,
    mixed_stride,
    state_stride,
    HEADS: tl.constexpr,
    SHARED: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    CHUNK: tl.constexpr,
    VALUES: tl.constexpr,
):
    """A slice of one head's state through a run."""
    head, run = tl.program_id(1), tl.program_id(2)
    heads, key_head = HEADS * SHARED, head // SHARED
    first, count = tl.load(runs + run * 3).to(tl.int64), tl.load(runs + run * 3 + 1)
    if count == 0:
        return
    chunk = tl.load(runs + run * 3 + 2).to(tl.int64)
    token, at_k = tl.arange(0, CHUNK), tl.arange(0, K)
    at_v = tl.program_id(0) * VALUES + tl.arange(0, VALUES)
    state_at = states + tl.load(slots + run).to(tl.int64) * state_stride + head * K * V
    state_at += at_k[:, None] * V + at_v[None, :]
    memory = tl.load(state_at).to(tl.float32)
    narrow = mixed.dtype.element_ty
    for start in range(0, count, CHUNK):
        live, row = start + token < count, first + start + token
        here, place = live[:, None], row * heads + head
        total = tl.load(totals + place, mask=live, other=0.0)
        unit_q = tl.load(query_factors + place, mask=live, other=0.0)
        unit_k = tl.load(key_factors + place, mask=live, other=0.0)
        whole = tl.load(totals + (first + tl.minimum(start + CHUNK, count) - 1) * heads + head)
        line = mixed + row[:, None] * mixed_stride
        q = tl.load(line + key_head * K + at_k[None, :], mask=here, other=0.0)
        k = tl.load(line + (HEADS + key_head) * K + at_k[None, :], mask=here, other=0.0)
        v = tl.load(line + 2 * HEADS * K + head * V + at_v[None, :], mask=here, other=0.0).to(tl.float32)
        square = ((chunk + start // CHUNK) * heads + head) * CHUNK * CHUNK + token[:, None] * CHUNK + token[None, :]
        solve, solve_low = tl.load(inverse_high + square), tl.load(inverse_low + square)
        seen = tl.load(scores + square)

        high, low = halves(memory, narrow)
        left = v - (tl.exp(total) * unit_k)[:, None] * (dot(k, high) + dot(k, low))
        result = (dot(q, high) + dot(q, low)) * unit_q[:, None]
        high, low = halves(left, narrow)
        change = dot(solve, high) + dot(solve, low) + dot(solve_low, high)
        result += tl.dot(seen, change, input_precision="tf32")
        tl.store(output + place[:, None] * V + at_v[None, :], result, mask=here)
        high, low = halves(change * (unit_k * tl.exp(whole - total))[:, None], narrow)
        turned = tl.trans(k)
        memory = memory * tl.exp(whole) + dot(turned, high) + dot(turned, low)
    tl.store(state_at, memory.to(states.dtype.element_ty))


@triton.jit
def _gate(
    x,
    qkvz,
    weight,
    output,
    eps,
    heads,
    qkvz_stride,
    group,
    SHARED: tl.constexpr,
    V: tl.constexpr,
    BLOCK: tl.constexpr,
):
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    at, here = tl.arange(0, V), (head < heads)[:, None]
    place = (token * heads + head)[:, None] * V + at[None, :]
    value = tl.load(x + place, mask=here, other=0.0)
    # Each key head's group ends in the z of its value heads.
    column = head // SHARED * group + group - SHARED * V + head % SHARED * V
    z = tl.load(qkvz + token * qkvz_stride + column[:, None] + at[None, :], mask=here, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(value * value, 1) / V + eps)
    y = value * scale[:, None] * tl.load(weight + at)[None, :] * z * tl.sigmoid(z)
    tl.store(output + place, y.to(output.dtype.element_ty), mask=here)
