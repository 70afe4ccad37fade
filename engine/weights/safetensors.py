"""Checkpoints in Hugging Face safetensors: plain float types and the official FP8 layout."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from engine.config import ModelConfig
from engine.errors import CheckpointError
from engine.quant.formats import FP8_BLOCK, PLAIN, Packed, join_rows
from engine.quant.linear import PackedExperts, stack_experts
from engine.text.tokenizer import Tokenizer
from engine.weights.files import copy_tokenizer, open_shard, read_json, read_tensor, shard_names
from engine.weights.layout import TensorSpec
from engine.weights.source import Weight, check_shape

_FORMAT_OF: Mapping[torch.dtype, str] = MappingProxyType({dtype: name for name, dtype in PLAIN.items()})
_SCALE = "_scale_inv"


class SafetensorsSource:
    """A directory with config.json and safetensors shards; see `engine.weights.source.Source`."""

    kind = "safetensors"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.where = str(path)
        raw = read_json(path / "config.json")
        self.config = ModelConfig.from_hf(raw, str(path / "config.json"))
        _check_quantization(raw.get("quantization_config"), path / "config.json")
        self._shards = {file: open_shard(file) for file in self.files()}
        self._shard_of = {name: shard for shard in self._shards.values() for name in shard_names(shard)}

    def files(self) -> list[Path]:
        index = self.path / "model.safetensors.index.json"
        if index.is_file():
            names = sorted(set(read_json(index).get("weight_map", {}).values()))
            files = [self.path / name for name in names]
        else:
            files = sorted(self.path.glob("*.safetensors"))
        missing = [file for file in files if not file.is_file()]
        if missing or not files:
            raise CheckpointError(f"{missing[0] if missing else self.path / '*.safetensors'}: no such file")
        return files

    def types(self) -> dict[str, int]:
        names = self._shard_of.items()
        return dict(Counter(str(shard.get_slice(name).get_dtype()) for name, shard in names))

    def unexpected(self, specs: list[TensorSpec]) -> list[str]:
        known = {native for spec in specs for native in self._natives(spec)}
        known |= {name + _SCALE for name in known}
        return sorted(name for name in self._shard_of if name not in known and not self._skippable(name))

    def _skippable(self, name: str) -> bool:
        """Draft layers (MTP), rotary tables of old files, and the head that a tied model may repeat."""
        tied_head = self.config.tie_word_embeddings and name == "lm_head.weight"
        return tied_head or name.startswith("mtp.") or name.endswith("rotary_emb.inv_freq")

    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_directory(self.path)

    def save_tokenizer(self, directory: Path) -> None:
        copy_tokenizer(self.path, directory)

    def extras(self) -> dict[str, Any]:
        return {}

    def _natives(self, spec: TensorSpec) -> list[str]:
        """The checkpoint's names of what makes up a tensor: itself, or the experts' own matrices in stacking order."""
        if spec.tensor_class != "expert" or spec.name in self._shard_of:
            return [spec.name]
        prefix, _, last = spec.name.rpartition(".")
        parts = ("gate_proj", "up_proj") if last == "gate_up_proj" else (last,)
        return [f"{prefix}.{expert}.{part}.weight" for expert in range(spec.shape[0]) for part in parts]

    def read(self, spec: TensorSpec) -> Weight:
        if spec.tensor_class in ("norm", "conv", "vector"):
            values = self._tensor(spec.name).float()
            check_shape(self.where, spec.name, tuple(values.shape), spec.shape)
            return values + 1 if self._is_zero_centred(spec) else values
        if spec.tensor_class == "expert":
            return self._read_experts(spec)
        return self._matrix(spec.name, (spec.shape[0], spec.shape[1]))

    def _is_zero_centred(self, spec: TensorSpec) -> bool:
        """Qwen3-Next's norms multiply by 1 + w, all but DeltaNet's gated norm."""
        plain = self.config.architecture == "llama" or spec.name.endswith("linear_attn.norm.weight")
        return spec.tensor_class == "norm" and not plain

    def _tensor(self, name: str) -> Tensor:
        shard = self._shard_of.get(name)
        if shard is None:
            raise CheckpointError(f"{self.where}: tensor {name} is missing")
        return read_tensor(shard, name)

    def _matrix(self, name: str, shape: tuple[int, int]) -> Packed:
        weight = self._tensor(name)
        check_shape(self.where, name, tuple(weight.shape), shape)
        return self._packed(name, weight)

    def _packed(self, name: str, weight: Tensor) -> Packed:
        shape = (weight.shape[0], weight.shape[1])
        if weight.dtype in _FORMAT_OF:
            return Packed(_FORMAT_OF[weight.dtype], shape, {"weight": weight})
        if weight.dtype == torch.float8_e4m3fn:
            scale = self._tensor(name + _SCALE).float()
            blocks = (-(-shape[0] // FP8_BLOCK), -(-shape[1] // FP8_BLOCK))
            check_shape(self.where, name + _SCALE, tuple(scale.shape), blocks)
            return Packed("fp8", shape, {"weight": weight, "scale": scale}, FP8_BLOCK)
        raise CheckpointError(f"{self.where}: tensor {name} has type {weight.dtype}; readable are f32, f16, bf16, e4m3")

    def _read_experts(self, spec: TensorSpec) -> PackedExperts:
        count, rows, columns = spec.shape
        natives = self._natives(spec)
        if natives == [spec.name]:
            stacked = self._tensor(spec.name)
            check_shape(self.where, spec.name, tuple(stacked.shape), spec.shape)
            return stack_experts([self._packed(spec.name, expert) for expert in stacked])
        per_expert = len(natives) // count
        parts = [self._matrix(name, (rows // per_expert, columns)) for name in natives]
        return stack_experts([join_rows(parts[i : i + per_expert]) for i in range(0, len(parts), per_expert)])


def _check_quantization(config: Any, where: Path) -> None:
    if config is None:
        return
    method = config.get("quant_method")
    if method != "fp8":
        raise CheckpointError(f"{where}: quantization_config.quant_method {method!r} is not supported; 'fp8' is")
    blocks = config.get("weight_block_size")
    if blocks != [FP8_BLOCK, FP8_BLOCK]:
        raise CheckpointError(
            f"{where}: quantization_config.weight_block_size is {blocks}; only [128, 128] is supported"
        )
