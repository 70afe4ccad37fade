"""Every operation in plain torch: the oracle of the other families, and what runs where none is faster."""

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.kernels.reference_delta import (
    causal_conv,
    causal_conv_step,
    delta_gates,
    delta_net_step,
    delta_rule_chunked,
    delta_rule_step,
    gated_rms_norm,
    plan_runs,
)
from engine.kernels.reference_moe import gated_mlp, moe, route

__all__ = [
    "add_rms_norm",
    "causal_conv",
    "causal_conv_step",
    "delta_gates",
    "delta_net_step",
    "delta_rule_chunked",
    "delta_rule_step",
    "gated_mlp",
    "gated_rms_norm",
    "moe",
    "paged_attention",
    "plan_attention",
    "plan_runs",
    "rms_norm",
    "rotate",
    "rotate_and_store",
    "route",
    "silu_mul",
    "store_kv",
]


@dataclass(frozen=True)
class AttentionPlan:
    """What one step's attention reads: the step's block tables and lengths, as `plan_attention` was given them."""

    block_tables: Tensor
    query_lens: tuple[int, ...]
    context_lens: tuple[int, ...]


def rms_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """`x · rsqrt(mean(x²) + eps) · weight` over the last axis, computed in float32, cast to `dtype` at the end.

    `weight` is the effective float32 factor (zero-centred checkpoints arrive as 1 + w). Zhang and Sennrich 2019, eq. 4.
    """
    x = x.float()
    return (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight).to(dtype)


def add_rms_norm(hidden: Tensor, delta: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """`rms_norm` of `hidden + delta`; `hidden`, float32, holds the sum afterwards."""
    hidden += delta
    return rms_norm(hidden, weight, eps, dtype)


def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """`silu(gate) · up` (SwiGLU, Shazeer 2020), in the dtype of the inputs."""
    return gate * torch.sigmoid(gate) * up


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of heads `x` [T, H, D] by half-rotation of the first 2·R dimensions; the rest pass through.

    `cos` and `sin` are float32 [T, 1, R]; the result is float32. Su et al. 2021, in the pairing (i, i + R).
    """
    half = cos.shape[-1]
    x = x.float()
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)


def store_kv(key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slots: Tensor) -> None:
    """Write `key`, `value` [T, Hkv, D] to the token slots `slots` [T] of caches [num_blocks, block_size, Hkv, D]."""
    key_cache.view(-1, *key_cache.shape[2:]).index_copy_(0, slots, key.to(key_cache.dtype))
    value_cache.view(-1, *value_cache.shape[2:]).index_copy_(0, slots, value.to(value_cache.dtype))


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
    """Rotate `query` and `key`, `store_kv` the rotated key and the value, and return the rotated query, float32."""
    store_kv(rotate(key, cos, sin), value, key_cache, value_cache, slots)
    return rotate(query, cos, sin)


def plan_attention(
    block_tables: Tensor, query_lens: tuple[int, ...], context_lens: tuple[int, ...], block_size: int
) -> AttentionPlan:
    """Prepare, once per step, what every layer's `paged_attention` shares."""
    return AttentionPlan(block_tables, query_lens, context_lens)


def paged_attention(query: Tensor, key_cache: Tensor, value_cache: Tensor, plan: AttentionPlan, scale: float) -> Tensor:
    """Causal attention of each sequence's new tokens over its cached context, which already holds them.

    `query` is [T, H, D]; query head h reads KV head h // (H / Hkv). Scores and softmax are float32; the result has the
    shape and dtype of `query`.
    """
    outputs = []
    queries = torch.split(query, list(plan.query_lens))
    for row, (queries_of_one, context) in enumerate(zip(queries, plan.context_lens, strict=True)):
        blocks = plan.block_tables[row].long()
        keys = key_cache[blocks].flatten(0, 1)[:context].float()
        values = value_cache[blocks].flatten(0, 1)[:context].float()
        outputs.append(_attend(queries_of_one.float(), keys, values, scale))
    return torch.cat(outputs).to(query.dtype)


def _attend(query: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    tokens, context, groups = query.shape[0], keys.shape[0], query.shape[1] // keys.shape[1]
    keys, values = keys.repeat_interleave(groups, dim=1), values.repeat_interleave(groups, dim=1)
    scores = torch.einsum("thd,chd->htc", query, keys) * scale
    position = torch.arange(context, device=query.device)
    hidden = position[None, :] > position[context - tokens :, None]
    probabilities = scores.masked_fill(hidden, float("-inf")).softmax(-1)
    return torch.einsum("htc,chd->thd", probabilities, values)
