"""Softmax attention over the paged cache."""

import torch
from torch import Tensor

from engine.config import ModelConfig
from engine.kernels.ops import FusedKernels, HeadNorms, Kernels, fused
from engine.model.scope import Scope
from engine.model.step import Step


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
    """Grouped-query attention with rotary positions. Scores, softmax, rotation and head norms are float32.

    Qwen3-Next adds, by the configuration: a norm of each query and key head before rotation, and an output gate, whose
    rows follow each head's query rows in `q_proj`.
    """

    def __init__(self, layer: int, config: ModelConfig, scope: Scope, kernels: Kernels) -> None:
        self.layer, self.kernels, self.eps = layer, kernels, config.rms_norm_eps
        self.heads, self.kv_heads, self.head_dim = config.num_attention_heads, config.num_kv_heads, config.head_dim
        self.gated = config.attention_output_gate
        self.qkv, self.o_proj = scope.joint("q_proj", "k_proj", "v_proj"), scope.linear("o_proj")
        self.q_norm = scope.tensor("q_norm.weight") if config.qk_norm else None
        self.k_norm = scope.tensor("k_norm.weight") if config.qk_norm else None
        self.norms = None
        if self.q_norm is not None and self.k_norm is not None:
            self.norms = HeadNorms(self.q_norm, self.k_norm, self.eps)
        self.fused = fused(kernels)

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        """[T, hidden] -> [T, hidden] in the dtype of `x`; the new keys and values are in the cache afterwards."""
        tokens = x.shape[0]
        projected, key, value = self.qkv(x)
        query, gate = self._query_and_gate(projected.view(tokens, self.heads, -1))
        key = key.view(tokens, self.kv_heads, self.head_dim)
        if self.fused is not None:
            value = value.view(tokens, self.kv_heads, self.head_dim)
            return self.o_proj(self._fused(self.fused, query, key, value, gate, x.dtype, step))
        if self.q_norm is not None and self.k_norm is not None:
            query = self.kernels.rms_norm(query, self.q_norm, self.eps, torch.float32)
            key = self.kernels.rms_norm(key, self.k_norm, self.eps, torch.float32)
        kv, slots = step.cache.kv[self.layer], step.batch.slot_mapping
        value = value.view(tokens, self.kv_heads, self.head_dim)
        query = self.kernels.rotate_and_store(query, key, value, step.cos, step.sin, kv.keys, kv.values, slots)
        output = self.kernels.paged_attention(query, kv.keys, kv.values, step.attention_plan, self.head_dim**-0.5)
        if gate is not None:
            output = output * torch.sigmoid(gate.float())
        return self.o_proj(output.view(tokens, -1).to(x.dtype))

    def _fused(
        self,
        kernels: FusedKernels,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        gate: Tensor | None,
        dtype: torch.dtype,
        step: Step,
    ) -> Tensor:
        """The same from the projections to `o_proj`, in two operations."""
        kv = step.cache.kv[self.layer]
        query = kernels.norm_rotate_and_store(
            query, key, value, self.norms, step.cos, step.sin, kv.keys, kv.values, step.batch.slot_mapping
        )
        scale = self.head_dim**-0.5
        output = kernels.gated_attention(query, kv.keys, kv.values, step.attention_plan, scale, gate, dtype)
        return output.flatten(1)

    def _query_and_gate(self, projected: Tensor) -> tuple[Tensor, Tensor | None]:
        """Both [T, heads, head_dim]; no gate where the architecture has none."""
        if not self.gated:
            return projected, None
        query, gate = projected.chunk(2, dim=-1)
        return query, gate
