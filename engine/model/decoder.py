"""The whole forward pass, readable top to bottom: embedding, layers of mixer and MLP, final norm, logits."""

from typing import Any, Protocol

import torch
from torch import Tensor

from engine.cache.tensors import CacheTensors
from engine.config import ModelConfig
from engine.kernels.ops import Kernels, family
from engine.model.attention import Attention, Rotary
from engine.model.batch import Batch
from engine.model.delta_net import DeltaNet
from engine.model.mlp import DenseMLP
from engine.model.moe import SparseMoE
from engine.model.scope import Scope, Weights
from engine.model.step import StatePart, Step, state_parts
from engine.parallel.group import Group, vocabulary_part
from engine.quant.cut import cut_rows
from engine.quant.linear import FLOAT32_ROWS, QuantizedLinear

__all__ = ["Decoder", "Weights"]


class Decoder:
    """A decoder-only transformer over packed weights under their Hugging Face names.

    `dtype` is that of the activations between matmuls, but for few rows on CPU, where it is float32. The residual
    stream, norms, rotation and softmax are float32 whatever it is, so that what a quantization level costs is its
    weights' rounding and not the accumulator's.
    In a `group` of several ranks `config` and `weights` are this rank's part (`engine.weights.shard`), and what the
    ranks' mixers and MLPs compute is added up, so that all see the same stream and the same logits.
    Raises CheckpointError that names a missing tensor.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        device: torch.device,
        dtype: torch.dtype,
        group: Group | None = None,
    ) -> None:
        self.config, self.dtype = config, dtype
        self.group = group or Group()
        self.kernels = family(device.type)
        scope = Scope(weights)
        self.embedding = scope.linear("model.embed_tokens")
        self.head = self._tied_head() if config.tie_word_embeddings else scope.linear("lm_head")
        self.norm = scope.tensor("model.norm.weight")
        self.rotary = Rotary(config, device)
        self.layers = [
            Layer(i, config, scope.below(f"model.layers.{i}"), self.kernels, self.group)
            for i in range(config.num_layers)
        ]

    def _tied_head(self) -> QuantizedLinear:
        """The embedding, or of several ranks this one's rows of it."""
        if self.group.size == 1:
            return self.embedding
        rows = vocabulary_part(self.config.vocab_size, self.group.rank, self.group.size)
        return QuantizedLinear(cut_rows(self.embedding.packed, [rows]))

    @torch.inference_mode()
    def forward(
        self,
        batch: Batch,
        cache: CacheTensors,
        attention_plan: Any = None,
        parts: tuple[StatePart, ...] | None = None,
    ) -> Tensor:
        """Logits float32 [R, vocab_size] of the rows `batch.logit_rows`; new keys and values are cached on the way.

        `attention_plan` and `parts` are the kernels' plans where they are made already, else they follow from the
        batch.
        """
        step = self._prepare(batch, cache, attention_plan, parts)
        hidden = self.embedding.rows(batch.token_ids).float()
        delta = torch.zeros_like(hidden)
        for layer in self.layers:
            delta = layer(hidden, delta, step)
        hidden = (hidden + delta)[batch.logit_rows]
        dtype = self._dtype(hidden)
        return self._all_logits(self.head(self.kernels.rms_norm(hidden, self.norm, self.config.rms_norm_eps, dtype)))

    def _all_logits(self, logits: Tensor) -> Tensor:
        """Float32 logits of the whole vocabulary from each rank's part of it, the last of which may be shorter."""
        if self.group.size == 1:
            return logits.float()
        vocabulary = self.config.vocab_size
        missing = -(-vocabulary // self.group.size) - logits.shape[1]
        logits = torch.nn.functional.pad(logits, (0, missing)) if missing else logits
        return self.group.gather_columns(logits)[:, :vocabulary].float()

    def _dtype(self, rows: Tensor) -> torch.dtype:
        """The CPU's kernels read packed weights in float32, and converting few rows costs more than it saves."""
        return torch.float32 if rows.device.type == "cpu" and len(rows) <= FLOAT32_ROWS else self.dtype

    def _prepare(self, batch: Batch, cache: CacheTensors, plan: Any, parts: tuple[StatePart, ...] | None) -> Step:
        cos, sin = self.rotary(batch.positions)
        if plan is None:
            lens = (batch.query_lens, batch.context_lens)
            plan = self.kernels.plan_attention(batch.block_tables, *lens, cache.block_size)
        if parts is None:
            parts = state_parts(batch, self.kernels) if cache.delta else ()
        return Step(
            batch,
            cache,
            self._dtype(batch.token_ids),
            cos,
            sin,
            plan,
            parts,
        )


class Mixer(Protocol):
    """The half of a layer in which tokens see one another."""

    def __call__(self, x: Tensor, step: Step) -> Tensor: ...


class MLP(Protocol):
    """The half of a layer in which every token is by itself."""

    def __call__(self, x: Tensor) -> Tensor: ...


class Layer:
    """`h += mixer(norm(h)); h += mlp(norm(h))`."""

    def __init__(self, index: int, config: ModelConfig, scope: Scope, kernels: Kernels, group: Group) -> None:
        self.kernels, self.eps, self.group = kernels, config.rms_norm_eps, group
        self.mixer_norm = scope.tensor("input_layernorm.weight")
        self.mlp_norm = scope.tensor("post_attention_layernorm.weight")
        self.mixer = mixer(index, config, scope, kernels)
        self.mlp = mlp(config, scope, kernels, group.rank)

    def __call__(self, hidden: Tensor, delta: Tensor, step: Step) -> Tensor:
        """What the layer adds to the residual stream, [T, hidden].

        `hidden` float32 is the stream without `delta`, what the layer before adds; on return `delta` and the mixer's
        part are in it. Leaving the last addition to who reads the sum joins it to the norm.
        """
        delta = self.mixer(self.kernels.add_rms_norm(hidden, delta, self.mixer_norm, self.eps, step.dtype), step)
        delta = self._summed(delta, step)
        delta = self.mlp(self.kernels.add_rms_norm(hidden, delta, self.mlp_norm, self.eps, step.dtype))
        return self._summed(delta, step)

    def _summed(self, part: Tensor, step: Step) -> Tensor:
        """The ranks' parts added up, sent in the dtype of activations."""
        return part if self.group.size == 1 else self.group.all_reduce(part.to(step.dtype))


def mixer(index: int, config: ModelConfig, scope: Scope, kernels: Kernels) -> Mixer:
    """The mixer that `config.layer_types` names for layer `index`."""
    if config.layer_types[index] == "linear_attention":
        return DeltaNet(index, config, scope.below("linear_attn"), kernels)
    return Attention(index, config, scope.below("self_attn"), kernels)


def mlp(config: ModelConfig, scope: Scope, kernels: Kernels, rank: int = 0) -> MLP:
    """Experts where the architecture has them, else a dense MLP."""
    if config.num_experts:
        return SparseMoE(config, scope.below("mlp"), kernels, rank)
    return DenseMLP(scope.below("mlp"), kernels)
