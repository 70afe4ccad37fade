"""A DeltaNet layer's decode step in one kernel: everything between the projections in and out.

A program has a slice of the values of one head of one sequence: it reads q, k, v, z, b, a where the projections left
them, moves the convolution's window on, and holds its slice of the state in registers while it changes it. With
S' = e^g S the new output needs no second pass over the state: o = Sᵀq = S'ᵀq + (k·q) Δ.

Two things concern all programs of a key head: the gated norm goes over whole value heads, and the window of q and k is
read by all. The last program to be done does both. Who that is is counted in `counters`, which are 0 before and after.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.reference_delta import DeltaWeights
from engine.kernels.triton_matrix.arrivals import is_last, zeroed_counters
from engine.kernels.triton_matrix.operands import early
from engine.kernels.triton_matrix.tiles import await_inputs

SLICE, WARPS = 64, 2
"""Columns of a state that one program has, and its warps: the fastest on an H200 at 32 and 128 sequences, and within 6%
of it at 1 and 8 (benchmarks/NOTES.md). The same for every batch, for the order of sums follows from them."""


def delta_net_step(
    qkvz: Tensor,
    ba: Tensor,
    weights: DeltaWeights,
    window: Tensor,
    recurrent: Tensor,
    slots: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """See `reference_delta.delta_net_step`; a slot below 0 belongs to no sequence and gives zeros."""
    sequences = qkvz.shape[0]
    value_heads, key_dim, value_dim = recurrent.shape[1:]
    output = torch.empty(sequences, value_heads, value_dim, dtype=dtype, device=qkvz.device)
    if not sequences:
        return output
    slices = triton.cdiv(value_dim, SLICE)
    counters, results = _scratch(qkvz.device, sequences, weights.key_heads, value_heads * value_dim)
    _step[(sequences, value_heads, slices)](
        qkvz,
        ba,
        weights.conv,
        weights.decay_rate,
        weights.dt_bias,
        weights.norm,
        window,
        recurrent,
        slots,
        counters,
        results,
        output,
        weights.eps,
        qkvz.stride(0),
        ba.stride(0),
        window.stride(0),
        recurrent.stride(0),
        HEADS=weights.key_heads,
        SHARED=value_heads // weights.key_heads,
        K=key_dim,
        V=value_dim,
        SLICE=value_dim // slices,
        TAPS=weights.conv.shape[1],
        num_warps=WARPS,
        **early(qkvz),
    )
    return output


def _scratch(device: torch.device, sequences: int, key_heads: int, width: int) -> tuple[Tensor, Tensor]:
    """Counters, one for each key head of a sequence, and room for results before their norm."""
    results = torch.empty(sequences, width, dtype=torch.float32, device=device)
    return zeroed_counters(device, sequences * key_heads), results


@triton.jit
def convolve(x, weight, window, channels, TAPS: tl.constexpr):
    """The causal convolution of one token's `channels`, then SiLU, rounded as the projection is; float32."""
    mixed = x.to(tl.float32) * tl.load(weight + channels * TAPS + TAPS - 1)
    for tap in tl.static_range(TAPS - 1):
        seen = tl.load(window + channels * (TAPS - 1) + tap).to(tl.float32)
        mixed += seen * tl.load(weight + channels * TAPS + tap)
    return (mixed * tl.sigmoid(mixed)).to(x.dtype).to(tl.float32)


@triton.jit
def _move_window(x, window, channels, TAPS: tl.constexpr):
    for tap in tl.static_range(TAPS - 2):
        newer = tl.load(window + channels * (TAPS - 1) + tap + 1)
        tl.store(window + channels * (TAPS - 1) + tap, newer)
    tl.store(window + channels * (TAPS - 1) + TAPS - 2, x.to(window.dtype.element_ty))


@triton.jit
def _step(
    qkvz,
    ba,
    conv_weight,
    decay_rate,
    dt_bias,
    norm_weight,
    windows,
    states,
    slots,
    counters,
    results,
    output,
    eps,
    qkvz_stride,
    ba_stride,
    window_stride,
    state_stride,
    HEADS: tl.constexpr,
    SHARED: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    SLICE: tl.constexpr,
    TAPS: tl.constexpr,
    EARLY: tl.constexpr,
):
    row, head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    key_head, member = head // SHARED, head % SHARED
    at_k, at_v = tl.arange(0, K), part * SLICE + tl.arange(0, SLICE)
    place = (row * HEADS * SHARED + head) * V
    slot = tl.load(slots + row).to(tl.int64)
    if slot < 0:
        await_inputs(EARLY)
        tl.store(output + place + at_v, tl.zeros([SLICE], output.dtype.element_ty))
        return
    state_at = states + slot * state_stride + head * K * V + at_k[:, None] * V + at_v[None, :]
    # States were last written a step ago: they are read while the projections are still being computed.
    memory = tl.load(state_at).to(tl.float32)
    await_inputs(EARLY)
    group = qkvz + row.to(tl.int64) * qkvz_stride + key_head * (2 * K + 2 * SHARED * V)
    raw_q, raw_k = tl.load(group + at_k), tl.load(group + K + at_k)
    raw_v = tl.load(group + 2 * K + member * V + at_v)
    window = windows + slot * window_stride
    channels_q, channels_k = key_head * K + at_k, (HEADS + key_head) * K + at_k
    channels_v = 2 * HEADS * K + head * V + at_v
    q = convolve(raw_q, conv_weight, window, channels_q, TAPS)
    k = convolve(raw_k, conv_weight, window, channels_k, TAPS)
    v = convolve(raw_v, conv_weight, window, channels_v, TAPS)
    q = q * tl.rsqrt(tl.sum(q * q, 0) + 1e-6) * (K**-0.5)
    k = k * tl.rsqrt(tl.sum(k * k, 0) + 1e-6)

    gates = ba + row.to(tl.int64) * ba_stride + key_head * 2 * SHARED + member
    strength = tl.sigmoid(tl.load(gates).to(tl.float32))
    a = tl.load(gates + SHARED).to(tl.float32) + tl.load(dt_bias + head)
    softplus = tl.where(a > 20.0, a, tl.log(1.0 + tl.exp(tl.minimum(a, 20.0))))
    memory *= tl.exp(-tl.load(decay_rate + head) * softplus)
    change = strength * (v - tl.sum(memory * k[:, None], 0))
    result = tl.sum(memory * q[:, None], 0) + tl.sum(k * q, 0) * change
    tl.store(results + place + at_v, result)
    memory += k[:, None] * change[None, :]
    tl.store(state_at, memory.to(states.dtype.element_ty))
    _move_window(raw_v, window, channels_v, TAPS)

    if is_last(counters + row * HEADS + key_head, SHARED * (V // SLICE)):
        at = tl.arange(0, V)
        for each in tl.static_range(SHARED):
            first = (row * HEADS * SHARED + key_head * SHARED + each) * V
            whole = tl.load(results + first + at, cache_modifier=".cg")
            z = tl.load(group + 2 * K + SHARED * V + each * V + at).to(tl.float32)
            scale = tl.rsqrt(tl.sum(whole * whole, 0) / V + eps)
            gated = whole * scale * tl.load(norm_weight + at) * z * tl.sigmoid(z)
            tl.store(output + first + at, gated.to(output.dtype.element_ty))
        _move_window(raw_q, window, channels_q, TAPS)
        _move_window(raw_k, window, channels_k, TAPS)
