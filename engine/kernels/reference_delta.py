"""Gated DeltaNet in plain torch: causal convolution, gates, and the gated delta rule in chunks and token by token.

The rule, per value head, with a state S [K, V] and tokens t (Yang et al. 2024, "Gated Delta Networks", eq. 10):

    S ← exp(g_t) S;   Δ = β_t (v_t − Sᵀ k_t);   S ← S + k_t Δᵀ;   o_t = Sᵀ q_t

A step brings sequences that extend their state by a run of tokens. Runs lie one after another in flat tensors [T, ...];
state tensors [slots, ...] are changed in place at each run's slot.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 64
"""Tokens of a run that are solved at once. Chunks are counted from the run's first token; the last may be shorter."""

NORM_EPS = 1e-6


@dataclass(frozen=True)
class RunPlan:
    """Which chunks the runs of one step fall into, longest run first; made once by `plan_runs`, shared by all layers.

    Chunks are ordered by their number within the run, so that those which can be computed side by side adjoin:
    `counts[i]` runs have an i-th chunk, and they are the first of the runs in this order.
    """

    lens: tuple[int, ...]  # of the runs in the order they were given
    slots: Tensor  # [B] int64, in the order given
    sorted_slots: Tensor  # [B] int64, longest run first
    counts: tuple[int, ...]
    rows: Tensor  # [N, CHUNK] int64: the row of T of each place in a chunk; any row where there is none
    used: Tensor  # [N, CHUNK] float32: 1 where there is a token, 0 in the padding
    places: Tensor  # [T] int64: where each row of T went in the N x CHUNK places


@dataclass(frozen=True)
class DeltaWeights:
    """What a DeltaNet layer has beside its projections, float32: convolution [C, W], exp(A_log), dt_bias, norm [V]."""

    conv: Tensor
    decay_rate: Tensor  # [Hv]
    dt_bias: Tensor  # [Hv]
    norm: Tensor
    eps: float
    key_heads: int

    @cached_property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """The tensors, on CPU, as numpy sees them: made once for kernels that are called for every token."""
        return tuple(x.contiguous().numpy() for x in (self.conv, self.decay_rate, self.dt_bias, self.norm))


def plan_runs(lens: tuple[int, ...], slots: Tensor) -> RunPlan:
    """Lay out runs of `lens` tokens, each at least 1, whose states are at `slots` [B] int64."""
    order = sorted(range(len(lens)), key=lambda run: -lens[run])
    starts = [sum(lens[:run]) for run in range(len(lens))]
    rows, counts, total = [], [], sum(lens)
    for first in range(0, max(lens), CHUNK):
        active = [run for run in order if lens[run] > first]
        counts.append(len(active))
        for run in active:
            span = range(starts[run] + first, starts[run] + min(lens[run], first + CHUNK))
            rows.append([*span, *[-1] * (CHUNK - len(span))])
    table = torch.tensor(rows)
    places = torch.empty(total + 1, dtype=torch.int64)
    places[table.flatten()] = torch.arange(table.numel())
    device = slots.device
    return RunPlan(
        lens=lens,
        slots=slots,
        sorted_slots=slots[torch.tensor(order, device=device)],
        counts=tuple(counts),
        rows=table.clamp(min=0).to(device),
        used=(table >= 0).float().to(device),
        places=places[:total].to(device),
    )


def causal_conv(x: Tensor, weight: Tensor, window: Tensor, plan: RunPlan) -> Tensor:
    """Depthwise causal convolution over each run, then SiLU: [T, C] to [T, C] in the dtype of `x`, through float32.

    `weight` is float32 [C, W], its last tap on the present token. `window` [slots, C, W - 1] holds each sequence's
    inputs before this run, newest last, and afterwards those before the next one.
    """
    taps = weight.float().t()
    reach = taps.shape[0] - 1
    before = window[plan.slots].transpose(1, 2).float()
    outputs, after = [], []
    for seen, run in zip(before, torch.split(x.float(), list(plan.lens)), strict=True):
        known = torch.cat((seen, run))
        mixed = known[: run.shape[0]] * taps[0]
        for tap in range(1, reach + 1):
            mixed.addcmul_(known[tap : tap + run.shape[0]], taps[tap])
        outputs.append(mixed)
        after.append(known[run.shape[0] :])
    window[plan.slots] = torch.stack(after).transpose(1, 2).to(window.dtype)
    return F.silu(torch.cat(outputs)).to(x.dtype)


def causal_conv_step(x: Tensor, weight: Tensor, window: Tensor, slots: Tensor) -> Tensor:
    """`causal_conv` for one token of each sequence: [B, C] to [B, C]; `slots` is int64 [B]."""
    known = torch.cat((window[slots].float(), x.float().unsqueeze(-1)), dim=-1)
    window[slots] = known[..., 1:].to(window.dtype)
    return F.silu((known * weight).sum(-1)).to(x.dtype)


def delta_gates(a: Tensor, b: Tensor, decay_rate: Tensor, dt_bias: Tensor) -> tuple[Tensor, Tensor]:
    """Log decay `g = −rate · softplus(a + dt_bias)` and write strength `β = sigmoid(b)`, float32 [T, Hv] each.

    `decay_rate` is exp(A_log) and, as `dt_bias`, float32 [Hv].
    """
    return -decay_rate * F.softplus(a.float() + dt_bias), torch.sigmoid(b.float())


def split_projections(qkvz: Tensor, ba: Tensor, weights: DeltaWeights, value_dim: int) -> tuple[Tensor, ...]:
    """Un-interleave [T, Hk · (K + K + rV + rV)] and [T, Hk · 2r] into q|k|v [T, C], z [T, Hv, V], b and a [T, Hv].

    Each of the Hk key heads has its r = Hv / Hk value heads' parts after its own.
    """
    heads, tokens = weights.key_heads, qkvz.shape[0]
    values = weights.decay_rate.shape[0] // heads * value_dim
    keys = qkvz.shape[1] // (2 * heads) - values
    q, k, v, z = torch.split(qkvz.view(tokens, heads, -1), [keys, keys, values, values], dim=-1)
    b, a = ba.view(tokens, heads, 2, -1).unbind(2)
    mixed = torch.cat((q.flatten(1), k.flatten(1), v.flatten(1)), dim=-1)
    return mixed, z.reshape(tokens, -1, value_dim), b.flatten(1), a.flatten(1)


def split_heads(mixed: Tensor, heads: int, values: int, value_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """q, k [T, heads, K] and v [T, values, V] as views of q|k|v."""
    keys = (mixed.shape[1] - values * value_dim) // 2
    q, k, v = mixed[:, :keys], mixed[:, keys : 2 * keys], mixed[:, 2 * keys :]
    return q.view(-1, heads, keys // heads), k.view(-1, heads, keys // heads), v.view(-1, values, value_dim)


def delta_net_step(
    qkvz: Tensor, ba: Tensor, weights: DeltaWeights, window: Tensor, state: Tensor, slots: Tensor, dtype: torch.dtype
) -> Tensor:
    """One token of each sequence from its projections to the gated norm: [B, Hv, V] in `dtype`.

    `causal_conv_step`, `delta_gates`, `delta_rule_step` and `gated_rms_norm` of what `split_projections` gives.
    """
    output, z = ungated_step(qkvz, ba, weights, window, state, slots)
    return gated_rms_norm(output, z, weights.norm, weights.eps, dtype)


def ungated_step(
    qkvz: Tensor, ba: Tensor, weights: DeltaWeights, window: Tensor, state: Tensor, slots: Tensor
) -> tuple[Tensor, Tensor]:
    """`delta_net_step` up to the gated norm: what that takes, and its gate."""
    mixed, z, b, a = split_projections(qkvz, ba, weights, state.shape[3])
    g, beta = delta_gates(a, b, weights.decay_rate, weights.dt_bias)
    mixed = causal_conv_step(mixed, weights.conv, window, slots)
    q, k, v = split_heads(mixed, weights.key_heads, state.shape[1], state.shape[3])
    return delta_rule_step(q, k, v, g, beta, state, slots), z


def delta_rule_chunked(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor, plan: RunPlan
) -> Tensor:
    """The gated delta rule over runs, CHUNK tokens at a time: float32 [T, Hv, V].

    `q`, `k` [T, Hk, K] are l2-normalised here and q scaled by K^-0.5; `v` is [T, Hv, V] and value head h reads key head
    h // (Hv / Hk); `g` ≤ 0 and `beta` are float32 [T, Hv]. `state` [slots, Hv, K, V] is float32 or bfloat16, the
    arithmetic float32. With G the running sum of g in a chunk and A_ij = β_i (k_i·k_j) e^{G_i−G_j} for j < i (ibid.,
    section 3.3):

        (I + A) U = β v,   (I + A) W = β e^G k,   V' = U − W S
        O = (e^G q) S + tril(q kᵀ e^{G_i−G_j}) V',   S ← e^{G_C} S + (e^{G_C−G} k)ᵀ V'

    Only differences G_i − G_j ≤ 0 are exponentiated. Padding has β = 0 and g = 0, and so leaves no trace.
    """
    heads, width = k.shape[1], v.shape[2]
    keys = _unit(k)[plan.rows].permute(0, 2, 1, 3).unsqueeze(2)
    queries = (_unit(q) * q.shape[2] ** -0.5)[plan.rows].permute(0, 2, 1, 3).unsqueeze(2)
    values = _by_group(v.float()[plan.rows], heads)
    strength = _by_group((beta[plan.rows] * plan.used.unsqueeze(-1)).unsqueeze(-1), heads)
    total = _by_group((g[plan.rows] * plan.used.unsqueeze(-1)).unsqueeze(-1), heads).cumsum(-2)
    decay = _decay_between(total)
    system = (keys @ keys.transpose(-1, -2)) * decay * strength
    right = torch.cat((values * strength, keys * (strength * total.exp())), dim=-1)
    solved = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
    fresh, read = solved[..., :width], solved[..., width:]
    scores = (queries @ keys.transpose(-1, -2)) * decay
    queries, last = queries * total.exp(), total[..., -1:, :]
    written = (keys * (last - total).exp()).transpose(-1, -2)
    memory = _state_of(state, plan.sorted_slots, heads)
    output = torch.empty_like(fresh)
    start = 0
    for count in plan.counts:
        now, live = slice(start, start + count), memory[:count]
        change = fresh[now] - read[now] @ live
        output[now] = queries[now] @ live + scores[now] @ change
        live.mul_(last[now].exp()).add_(written[now] @ change)
        start += count
    state[plan.sorted_slots] = memory.flatten(1, 2).to(state.dtype)
    return output.permute(0, 3, 1, 2, 4).flatten(0, 1).flatten(1, 2)[plan.places]


def delta_rule_step(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor, slots: Tensor) -> Tensor:
    """The gated delta rule for one token of each sequence, T = B; else as `delta_rule_chunked`. `slots` int64 [B]."""
    memory = _state_of(state, slots, k.shape[1])
    output = advance(memory, q, k, v, g, beta)
    state[slots] = memory.flatten(1, 2).to(state.dtype)
    return output


def advance(memory: Tensor, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Tensor:
    """One token's rule on states float32 [B, Hk, Hv / Hk, K, V], changed in place: float32 [B, Hv, V]."""
    heads = k.shape[1]
    query, key = (_unit(q) * q.shape[2] ** -0.5)[:, :, None, :, None], _unit(k)[:, :, None, :, None]
    value = v.float().view(v.shape[0], heads, -1, v.shape[2])
    decay, strength = (x.reshape(x.shape[0], heads, -1, 1) for x in (g.exp(), beta))
    memory.mul_(decay.unsqueeze(-1))
    change = strength * (value - (memory * key).sum(-2))
    memory.addcmul_(key, change.unsqueeze(-2))
    output: Tensor = (memory * query).sum(-2)
    return output.flatten(1, 2)


def gated_rms_norm(x: Tensor, gate: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """`weight · rmsnorm(x) · silu(gate)` over the last axis, in float32, cast to `dtype` at the end."""
    x = x.float()
    normed = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight
    return (normed * F.silu(gate.float())).to(dtype)


def _unit(x: Tensor) -> Tensor:
    """`x` in float32, over the root of the sum (not the mean) of squares of its last axis."""
    x = x.float()
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + NORM_EPS)


def _by_group(x: Tensor, heads: int) -> Tensor:
    """[N, CHUNK, Hv, D] to [N, Hk, Hv / Hk, CHUNK, D]."""
    return x.view(x.shape[0], CHUNK, heads, -1, x.shape[3]).permute(0, 2, 3, 1, 4)


def _decay_between(total: Tensor) -> Tensor:
    """e^{G_i − G_j} for j ≤ i and 0 above, from G [..., CHUNK, 1]."""
    difference = total - total.transpose(-1, -2)
    later = torch.ones(CHUNK, CHUNK, dtype=torch.bool, device=total.device).triu(1)
    return difference.masked_fill(later, float("-inf")).exp()


def _state_of(state: Tensor, slots: Tensor, heads: int) -> Tensor:
    """A float32 copy of the states at `slots`: [B, Hk, Hv / Hk, K, V]."""
    return state[slots].float().view(slots.shape[0], heads, -1, *state.shape[2:])
