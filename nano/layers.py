"""The parts of a Qwen3-Next layer as functions of the residual stream, for training: whole texts, no caches.

Each takes the stream h, float32 [B, N, C, hidden] (B texts of N chunks of C tokens: the number of tokens is then a
multiple of the chunk by construction, which a compiler need not prove), and matrices as stored. Products run in
`Numbers.dtype`, all else in float32.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.config import ModelConfig

UNIT_EPS = 1e-6  # of the l2 norm of DeltaNet's queries and keys


@dataclass(frozen=True)
class Numbers:
    """What the functions need to know of the model beside its weights."""

    config: ModelConfig
    dtype: torch.dtype


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Zero-centred RMSNorm, `x · rsqrt(mean(x²) + eps) · (1 + w)`, in float32."""
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * (1 + weight)


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """`x Wᵀ` in the dtype of `x`."""
    return F.linear(x, weight.to(x.dtype))


def delta_inputs(
    h: Tensor,
    norm: Tensor,
    in_proj_qkvz: Tensor,
    in_proj_ba: Tensor,
    conv: Tensor,
    a_log: Tensor,
    dt_bias: Tensor,
    numbers: Numbers,
) -> tuple[Tensor, ...]:
    """q, k [B, N, C, Hk, K] after convolution and SiLU, not yet normalised, v, z [B, N, C, Hv, V]; g, β [B, N, C, Hv].

    g and β are float32, the others in the products' dtype.
    """
    config = numbers.config
    heads, key, value = config.linear_num_key_heads, config.linear_key_head_dim, config.linear_value_head_dim
    ratio = config.linear_num_value_heads // heads
    x = rms_norm(h, norm, config.rms_norm_eps).to(numbers.dtype)
    joined = torch.unflatten(linear(x, in_proj_qkvz), -1, (heads, -1))
    parts = torch.split(joined, [key, key, ratio * value, ratio * value], dim=-1)
    mixed = causal_conv(torch.cat([part.flatten(-2) for part in parts[:3]], dim=-1), conv)
    q, k, v = torch.split(mixed.to(numbers.dtype), [heads * key, heads * key, heads * ratio * value], dim=-1)
    b, a = torch.unflatten(linear(x, in_proj_ba), -1, (heads, 2, ratio)).float().unbind(-2)
    g = -a_log.float().exp() * F.softplus(a.flatten(-2) + dt_bias)
    v, z = (torch.unflatten(x, -1, (-1, value)) for x in (v, parts[3].flatten(-2)))
    q, k = (torch.unflatten(x, -1, (heads, key)) for x in (q, k))
    return q, k, v, z, g, torch.sigmoid(b.flatten(-2))


def causal_conv(x: Tensor, weight: Tensor) -> Tensor:
    """Depthwise causal convolution along [B, N · C], then SiLU: float32. `weight` [channels, 1, W], last tap now."""
    taps = weight.float().squeeze(1)
    reach = taps.shape[1] - 1
    length = x.shape[1] * x.shape[2]
    padded = F.pad(x.flatten(1, 2), (0, 0, reach, 0)).float()
    mixed = padded[:, reach:] * taps[:, reach]
    for tap in range(reach):
        mixed = mixed + padded[:, tap : tap + length] * taps[:, tap]
    return F.silu(mixed).view(x.shape)


def unit(x: Tensor) -> Tensor:
    """`x` in float32 over the root of the sum (not the mean) of squares."""
    x = x.float()
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + UNIT_EPS)


def delta_output(h: Tensor, read: Tensor, z: Tensor, norm: Tensor, out_proj: Tensor, numbers: Numbers) -> Tensor:
    """h + out_proj(w · rmsnorm(o) · silu(z)), from the rule's output and its gate, [B, N, C, Hv, V] each."""
    read = read.float()
    normed = read * torch.rsqrt(read.square().mean(-1, keepdim=True) + numbers.config.rms_norm_eps) * norm
    gated = (normed * F.silu(z.float())).flatten(-2).to(numbers.dtype)
    return h + linear(gated, out_proj).float()


def rotary(length: int, config: ModelConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines [length, rotary_dim / 2], float32, of positions from 0."""
    exponents = torch.arange(0, config.rotary_dim, 2, dtype=torch.float32, device=device) / config.rotary_dim
    angles = torch.arange(length, dtype=torch.float32, device=device)[:, None] / config.rope_theta**exponents
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the first dimensions of heads [B, L, heads, D] by the angles, halves against each other."""
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)


def attention(
    h: Tensor,
    norm: Tensor,
    q_proj: Tensor,
    k_proj: Tensor,
    v_proj: Tensor,
    o_proj: Tensor,
    q_norm: Tensor,
    k_norm: Tensor,
    cos: Tensor,
    sin: Tensor,
    numbers: Numbers,
) -> Tensor:
    """h + gated causal attention of it."""
    config, eps = numbers.config, numbers.config.rms_norm_eps
    x = rms_norm(h, norm, eps).to(numbers.dtype).flatten(1, 2)
    query, gate = torch.unflatten(linear(x, q_proj), -1, (config.num_attention_heads, -1)).chunk(2, dim=-1)
    key, value = (torch.unflatten(linear(x, w), -1, (config.num_kv_heads, -1)) for w in (k_proj, v_proj))
    query = rotate(rms_norm(query, q_norm, eps), cos, sin).to(numbers.dtype)
    key = rotate(rms_norm(key, k_norm, eps), cos, sin).to(numbers.dtype)
    groups = config.num_attention_heads // config.num_kv_heads
    key, value = key.repeat_interleave(groups, dim=2), value.repeat_interleave(groups, dim=2)
    query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    output = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=config.head_dim**-0.5)
    gated = output.transpose(1, 2) * torch.sigmoid(gate.float())
    return h + linear(gated.flatten(-2).to(numbers.dtype), o_proj).float().view(h.shape)


def route(logits: Tensor, top_k: int, renormalise: bool) -> tuple[Tensor, Tensor]:
    """Weights [T, E], zero but for the `top_k` likeliest experts of each token, and the probabilities of all."""
    probabilities = logits.softmax(-1)
    mine, other = probabilities.unsqueeze(-1), probabilities.unsqueeze(-2)
    number = torch.arange(logits.shape[-1], device=logits.device)
    before = (other > mine) | ((other == mine) & (number < number[:, None]))
    weights = probabilities * (before.sum(-1) < top_k)
    return (weights / weights.sum(-1, keepdim=True) if renormalise else weights), probabilities


def experts(
    h: Tensor,
    norm: Tensor,
    router: Tensor,
    gate_up: Tensor,
    down: Tensor,
    shared_gate: Tensor,
    shared_up: Tensor,
    shared_down: Tensor,
    shared_expert_gate: Tensor,
    valid: Tensor,
    numbers: Numbers,
) -> tuple[Tensor, Tensor, Tensor]:
    """h + mixture of experts of it; the routers' two losses [2] (see `router_losses`); each expert's share [E].

    All experts compute all tokens, and routing weights, mostly zero, scale what they add: at this size two large
    products are faster than sorting tokens for many small ones. The shared expert is one more, weighed by its gate.
    `gate_up` is [E, 2I, hidden], `down` [E, hidden, I], `valid` float32 [B, N, C] is 0 on padding.
    """
    config = numbers.config
    normed = rms_norm(h, norm, config.rms_norm_eps).flatten(0, 2)
    logits = normed @ router.t()
    weights, probabilities = route(logits, config.num_experts_per_token, config.norm_topk_prob)
    x = normed.to(numbers.dtype)
    shared = torch.sigmoid(normed @ shared_expert_gate.t())
    gate, up = gate_up.chunk(2, dim=1)
    gate, up = torch.cat((gate.flatten(0, 1), shared_gate)), torch.cat((up.flatten(0, 1), shared_up))
    columns = torch.cat((down.permute(1, 0, 2).flatten(1), shared_down), dim=1)
    inner = F.silu(linear(x, gate).float()) * linear(x, up).float()
    routed = gate_up.shape[0] * down.shape[2]
    chosen = torch.unflatten(inner[:, :routed], -1, (config.num_experts, -1)) * weights.unsqueeze(-1)
    scaled = torch.cat((chosen.flatten(-2), inner[:, routed:] * shared), dim=-1)
    added = linear(scaled.to(numbers.dtype), columns).float().view(h.shape)
    losses, share = router_losses(logits, probabilities, weights > 0, valid.flatten())
    return h + added, losses, share


def router_losses(logits: Tensor, probabilities: Tensor, chosen: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """The load-balance loss and the z-loss of one router, [2], and each expert's share of the choices, [E].

    Balance: `E · Σ_e share_e · mean probability_e`, 1 when even (Fedus et al. 2021, eq. 4). z: mean squared logsumexp
    of the logits (Zoph et al. 2022, eq. 5). Padding (`valid` 0) does not count.
    """
    count = valid.sum()
    share = (chosen * valid.unsqueeze(-1)).sum(0)
    share = share / share.sum()
    mean = (probabilities * valid.unsqueeze(-1)).sum(0) / count
    z = (logits.logsumexp(-1).square() * valid).sum() / count
    return torch.stack((logits.shape[-1] * (share.detach() * mean).sum(), z)), share.detach()


def predictions(
    h: Tensor, places: Tensor, targets: Tensor, norm: Tensor, head: Tensor, numbers: Numbers
) -> tuple[Tensor, Tensor]:
    """Cross entropy in nats, float32 [M], of `targets` int64 [M] after the flat token `places` int64 [M] of h, and
    whether each is the likeliest token, bool [M]."""
    rows = rms_norm(h.flatten(0, 2)[places], norm, numbers.config.rms_norm_eps)
    logits = linear(rows.to(numbers.dtype), head).float()
    return F.cross_entropy(logits, targets, reduction="none"), logits.detach().argmax(-1) == targets
