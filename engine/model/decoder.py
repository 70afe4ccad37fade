"""The whole forward pass, readable top to bottom: embedding, layers of mixer and MLP, final norm, logits."""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from engine.cache.tensors import CacheTensors
from engine.config import ModelConfig
from engine.errors import CheckpointError
from engine.kernels.ops import Kernels, family
from engine.model.attention import Attention, Projection, Rotary, Step
from engine.model.batch import Batch
from engine.quant.formats import Packed
from engine.quant.linear import PackedExperts, QuantizedLinear

Weights = Mapping[str, Packed | PackedExperts | Tensor]


class Decoder:
    """A decoder-only transformer over packed weights under their Hugging Face names.

    `dtype` is that of the activations between matmuls. The residual stream, norms, rotation and softmax are float32
    whatever it is, so that what a quantization level costs is its weights' rounding and not the accumulator's.
    Raises CheckpointError that names a missing tensor or a layer type without a mixer.
    """

    def __init__(self, config: ModelConfig, weights: Weights, device: torch.device, dtype: torch.dtype) -> None:
        self.config, self.dtype = config, dtype
        self.kernels = family(device.type)
        self.embedding = linear(weights, "model.embed_tokens")
        self.head = self.embedding if config.tie_word_embeddings else linear(weights, "lm_head")
        self.norm = tensor(weights, "model.norm.weight")
        self.rotary = Rotary(config, device)
        self.layers = [Layer(i, config, weights, self.kernels, dtype) for i in range(config.num_layers)]

    @torch.inference_mode()
    def forward(self, batch: Batch, cache: CacheTensors) -> Tensor:
        """Logits float32 [R, vocab_size] of the rows `batch.logit_rows`; new keys and values are cached on the way."""
        step = self._prepare(batch, cache)
        hidden = self.embedding.rows(batch.token_ids).float()
        for layer in self.layers:
            hidden = layer(hidden, step)
        hidden = hidden[batch.logit_rows]
        return self.head(self.kernels.rms_norm(hidden, self.norm, self.config.rms_norm_eps, self.dtype)).float()

    def _prepare(self, batch: Batch, cache: CacheTensors) -> Step:
        cos, sin = self.rotary(batch.positions)
        plan = self.kernels.plan_attention(batch.block_tables, batch.query_lens, batch.context_lens, cache.block_size)
        return Step(batch, cache, cos, sin, plan)


class Mixer(Protocol):
    """The half of a layer in which tokens see one another."""

    def __call__(self, x: Tensor, step: Step) -> Tensor: ...


class Layer:
    """`h += mixer(norm(h)); h += mlp(norm(h))`."""

    def __init__(self, index: int, config: ModelConfig, weights: Weights, kernels: Kernels, dtype: torch.dtype) -> None:
        name = f"model.layers.{index}"
        self.kernels, self.eps, self.dtype = kernels, config.rms_norm_eps, dtype
        self.mixer_norm = tensor(weights, f"{name}.input_layernorm.weight")
        self.mlp_norm = tensor(weights, f"{name}.post_attention_layernorm.weight")
        self.mixer = mixer(index, config, weights, kernels)
        self.mlp = DenseMLP(lambda part: linear(weights, f"{name}.mlp.{part}"), kernels)

    def __call__(self, hidden: Tensor, step: Step) -> Tensor:
        """Float32 [T, hidden] -> the same, changed in place."""
        hidden += self.mixer(self.kernels.rms_norm(hidden, self.mixer_norm, self.eps, self.dtype), step)
        hidden += self.mlp(self.kernels.rms_norm(hidden, self.mlp_norm, self.eps, self.dtype))
        return hidden


class DenseMLP:
    """`down(silu(gate(x)) · up(x))`."""

    def __init__(self, projection: Projection, kernels: Kernels) -> None:
        self.kernels = kernels
        self.gate, self.up, self.down = projection("gate_proj"), projection("up_proj"), projection("down_proj")

    def __call__(self, x: Tensor) -> Tensor:
        """[T, hidden] -> [T, hidden] in the dtype of `x`."""
        return self.down(self.kernels.silu_mul(self.gate(x), self.up(x)))


def mixer(index: int, config: ModelConfig, weights: Weights, kernels: Kernels) -> Mixer:
    """The mixer that `config.layer_types` names for layer `index`."""
    kind = config.layer_types[index]
    if kind == "full_attention":
        return Attention(index, config, lambda part: linear(weights, f"model.layers.{index}.self_attn.{part}"), kernels)
    raise CheckpointError(f"layer {index} is of type {kind!r}, which this version cannot run; it runs full_attention")


def tensor(weights: Weights, name: str) -> Tensor:
    """An unquantized weight; CheckpointError when it is absent."""
    found = weights.get(name)
    if not isinstance(found, Tensor):
        raise CheckpointError(f"the checkpoint has no unquantized tensor {name}")
    return found


def linear(weights: Weights, name: str) -> QuantizedLinear:
    """The projection `name` with its bias if the checkpoint has one; CheckpointError when it is absent."""
    packed = weights.get(f"{name}.weight")
    if not isinstance(packed, Packed):
        raise CheckpointError(f"the checkpoint has no tensor {name}.weight")
    bias = tensor(weights, f"{name}.bias") if f"{name}.bias" in weights else None
    return QuantizedLinear(packed, bias)
