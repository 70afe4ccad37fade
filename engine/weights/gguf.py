"""Checkpoints in GGUF: architectures `llama` and `qwen3next`, the converter's transformations undone.

Names and transformations follow llama.cpp's converter (convert_hf_to_gguf.py, LlamaModel and Qwen3NextModel).
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from engine.config import ModelConfig
from engine.errors import CheckpointError
from engine.quant.formats import Packed, join_rows
from engine.quant.gguf_blocks import expand
from engine.quant.linear import PackedExperts, join_experts
from engine.text.tokenizer import Tokenizer
from engine.weights.gguf_file import GGUFFile
from engine.weights.layout import TensorSpec
from engine.weights.packed import save_gguf_tokenizer
from engine.weights.source import Weight, check_shape

_PLAIN_TYPES: Mapping[str, tuple[str, torch.dtype]] = MappingProxyType(
    {"F32": ("f32", torch.float32), "F16": ("f16", torch.float16), "BF16": ("bf16", torch.bfloat16)}
)
_TOP = MappingProxyType(
    {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
)
_IN_LAYER = MappingProxyType(
    {
        "input_layernorm.weight": "attn_norm.weight",
        "self_attn.q_norm.weight": "attn_q_norm.weight",
        "self_attn.k_norm.weight": "attn_k_norm.weight",
        "linear_attn.in_proj_qkvz.weight": "ssm_in.weight",
        "linear_attn.in_proj_ba.weight": "ssm_ba.weight",
        "linear_attn.conv1d.weight": "ssm_conv1d.weight",
        "linear_attn.A_log": "ssm_a",
        "linear_attn.dt_bias": "ssm_dt.bias",
        "linear_attn.norm.weight": "ssm_norm.weight",
        "linear_attn.out_proj.weight": "ssm_out.weight",
        "mlp.gate.weight": "ffn_gate_inp.weight",
        "mlp.shared_expert_gate.weight": "ffn_gate_inp_shexp.weight",
        "mlp.experts.gate_up_proj": "ffn_gate_up_exps.weight",
        "mlp.experts.down_proj": "ffn_down_exps.weight",
    }
    | {
        f"self_attn.{part}_proj.{kind}": f"attn_{'output' if part == 'o' else part}.{kind}"
        for part in "qkvo"
        for kind in ("weight", "bias")
    }
    | {f"mlp.{part}_proj.weight": f"ffn_{part}.weight" for part in ("gate", "up", "down")}
    | {f"mlp.shared_expert.{part}_proj.weight": f"ffn_{part}_shexp.weight" for part in ("gate", "up", "down")}
)
_SKIPPABLE = ("rope_freqs.weight",)
# A newer file splits what an older one holds in one tensor; the canonical tensor is the joined one.
_SPLIT = MappingProxyType(
    {
        "ssm_in.weight": ("attn_qkv.weight", "attn_gate.weight"),
        "ffn_gate_up_exps.weight": ("ffn_gate_exps.weight", "ffn_up_exps.weight"),
    }
)


class GGUFSource:
    """A GGUF checkpoint; see `engine.weights.source.Source`."""

    kind = "gguf"

    def __init__(self, path: Path) -> None:
        self.where = str(path)
        self.file = GGUFFile(path)
        config = ModelConfig.from_gguf(self.file.metadata, self.where)
        factors = self._vector("rope_freqs.weight") if "rope_freqs.weight" in self.file.tensors else None
        self.config = replace(
            config,
            tie_word_embeddings="output.weight" not in self.file.tensors,
            attention_bias="blk.0.attn_q.bias" in self.file.tensors,
            rope_factors=None if factors is None else tuple(factors.tolist()),
        )

    def files(self) -> list[Path]:
        return [self.file.path]

    def types(self) -> dict[str, int]:
        return dict(Counter(tensor.kind.name for tensor in self.file.tensors.values()))

    def unexpected(self, specs: list[TensorSpec]) -> list[str]:
        known = {part for spec in specs for part in self._parts(self._native(spec.name))}
        return sorted(set(self.file.tensors) - known - set(_SKIPPABLE))

    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_gguf(self.file.metadata, self.where)

    def save_tokenizer(self, directory: Path) -> None:
        save_gguf_tokenizer(self.file.metadata, directory)

    def extras(self) -> dict[str, Any]:
        return {}

    def read(self, spec: TensorSpec) -> Weight:
        native = self._native(spec.name)
        if spec.tensor_class in ("norm", "conv", "vector"):
            return self._read_vector(spec, native)
        if spec.tensor_class == "expert":
            return self._read_experts(spec, native)
        packed = self._read_matrix(native)
        check_shape(self.where, native, packed.shape, spec.shape)
        return packed

    def _native(self, name: str) -> str:
        """The GGUF name of a canonical one."""
        if name in _TOP:
            return _TOP[name]
        layer, _, rest = name.removeprefix("model.layers.").partition(".")
        if rest == "post_attention_layernorm.weight":
            return f"blk.{layer}.{'ffn_norm' if self.config.architecture == 'llama' else 'post_attention_norm'}.weight"
        return f"blk.{layer}.{_IN_LAYER[rest]}"

    def _parts(self, native: str) -> tuple[str, ...]:
        """The stored tensors that make up a native one: itself, or what a newer file splits it into."""
        found = re.fullmatch(r"(blk\.\d+\.)(.+)", native)
        if found is None or native in self.file.tensors or found[2] not in _SPLIT:
            return (native,)
        return tuple(found[1] + part for part in _SPLIT[found[2]])

    def _blocks(self, native: str) -> Tensor:
        if native not in self.file.tensors:
            raise CheckpointError(f"{self.where}: tensor {native} is missing")
        return self.file.blocks(native)

    def _vector(self, native: str) -> Tensor:
        return expand(self._blocks(native), self.file.tensors[native].kind)

    def _read_vector(self, spec: TensorSpec, native: str) -> Tensor:
        values = self._vector(native)
        if spec.name.endswith("A_log"):
            values = (-values).log()
        if spec.name.endswith("conv1d.weight") and values.ndim == 2:
            values = values.unsqueeze(1)
        if self.config.architecture == "llama" and spec.name.endswith(".bias"):
            order = self._rotary_order(native)
            values = values if order is None else values[order]
        check_shape(self.where, native, tuple(values.shape), spec.shape)
        return values

    def _stored(self, native: str) -> tuple[str, dict[str, Tensor], tuple[int, ...]]:
        """Format, tensors and shape of a stored matrix or stack of matrices."""
        blocks, stored = self._blocks(native), self.file.tensors[native]
        if stored.kind.name in _PLAIN_TYPES:
            format, dtype = _PLAIN_TYPES[stored.kind.name]
            return format, {"weight": blocks.view(dtype)}, stored.shape
        return stored.kind.name, {"blocks": blocks}, stored.shape

    def _read_matrix(self, native: str) -> Packed:
        parts = [self._one_matrix(part) for part in self._parts(native)]
        if len(parts) == 1:
            order = self._rotary_order(native) if self.config.architecture == "llama" else None
        else:
            order = _interleaved_order(self.config)
        return join_rows(parts, order) if order is not None else parts[0]

    def _one_matrix(self, native: str) -> Packed:
        format, tensors, shape = self._stored(native)
        if len(shape) == 1:
            shape, tensors = (1, *shape), {name: tensor.unsqueeze(0) for name, tensor in tensors.items()}
        if len(shape) != 2:
            raise CheckpointError(f"{self.where}: tensor {native} has shape {list(shape)}; a matrix is needed")
        return Packed(format, (shape[0], shape[1]), tensors)

    def _rotary_order(self, native: str) -> Tensor | None:
        """For llama's q and k: where each row of half-rotation order stands among the converter's interleaved pairs."""
        heads = {"attn_q": self.config.num_attention_heads, "attn_k": self.config.num_kv_heads}
        count = heads.get(native.split(".")[-2])
        if count is None:
            return None
        rows = torch.arange(self.file.tensors[native].shape[0] if native in self.file.tensors else 0)
        return rows.reshape(count, -1, 2).transpose(1, 2).reshape(-1)

    def _read_experts(self, spec: TensorSpec, native: str) -> PackedExperts:
        parts = []
        for part in self._parts(native):
            format, tensors, shape = self._stored(part)
            if len(shape) != 3:
                raise CheckpointError(
                    f"{self.where}: tensor {part} has shape {list(shape)}; stacked experts are needed"
                )
            parts.append(PackedExperts(format, (shape[0], shape[1], shape[2]), tensors))
        joined = parts[0] if len(parts) == 1 else join_experts(parts)
        check_shape(self.where, native, joined.shape, spec.shape)
        return joined


def _interleaved_order(config: ModelConfig) -> Tensor:
    """Where each row of `in_proj_qkvz` (per key head: q, k, its value heads' v, their z) stands in q | k | v | z."""
    heads = config.linear_num_key_heads
    key = heads * config.linear_key_head_dim
    value = config.linear_num_value_heads * config.linear_value_head_dim
    rows = torch.split(torch.arange(2 * key + 2 * value), [key, key, value, value])
    return torch.cat([part.reshape(heads, -1) for part in rows], dim=1).reshape(-1)
