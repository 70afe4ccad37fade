"""Softmax attention over the paged cache, and what all layers of one step share."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.cache.tensors import CacheTensors
from engine.config import ModelConfig
from engine.kernels.ops import Kernels
from engine.model.batch import Batch
from engine.quant.linear import QuantizedLinear

Projection = Callable[[str], QuantizedLinear]
"""Builds the projection of a given name below the module at hand, e.g. "q_proj"."""


@dataclass(frozen=True)
class Step:
    """What every layer of one forward pass shares: computed once from the batch."""

    batch: Batch
    cache: CacheTensors
    cos: Tensor  # [T, 1, rotary_dim / 2] float32
    sin: Tensor  # [T, 1, rotary_dim / 2] float32
    attention_plan: Any


class Rotary:
    """Angles of the rotary embedding: position · theta^(-2i / rotary_dim) / factor_i, all float32."""

    def __init__(self, config: ModelConfig, device: torch.device) -> None:
        exponents = torch.arange(0, config.rotary_dim, 2, dtype=torch.float32) / config.rotary_dim
        frequencies = 1.0 / config.rope_theta**exponents
        if config.rope_factors is not None:
            frequencies = frequencies / torch.tensor(config.rope_factors)
        self.frequencies = frequencies.to(device)

    def __call__(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines [T, 1, rotary_dim / 2] of `positions` [T]."""
        angles = positions[:, None, None].float() * self.frequencies
        return angles.cos(), angles.sin()


class Attention:
    """Grouped-query attention with rotary positions. Scores, softmax and rotation are float32."""

    def __init__(self, layer: int, config: ModelConfig, projection: Projection, kernels: Kernels) -> None:
        self.layer = layer
        self.kernels = kernels
        self.heads, self.kv_heads, self.head_dim = config.num_attention_heads, config.num_kv_heads, config.head_dim
        self.q_proj, self.k_proj = projection("q_proj"), projection("k_proj")
        self.v_proj, self.o_proj = projection("v_proj"), projection("o_proj")

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        """[T, hidden] -> [T, hidden] in the dtype of `x`; the new keys and values are in the cache afterwards."""
        tokens = x.shape[0]
        query = self.q_proj(x).view(tokens, self.heads, self.head_dim)
        key = self.k_proj(x).view(tokens, self.kv_heads, self.head_dim)
        value = self.v_proj(x).view(tokens, self.kv_heads, self.head_dim)
        query = self.kernels.rotate(query, step.cos, step.sin)
        key = self.kernels.rotate(key, step.cos, step.sin)
        kv = step.cache.kv[self.layer]
        self.kernels.store_kv(key, value, kv.keys, kv.values, step.batch.slot_mapping)
        output = self.kernels.paged_attention(query, kv.keys, kv.values, step.attention_plan, self.head_dim**-0.5)
        return self.o_proj(output.view(tokens, -1).to(x.dtype))
