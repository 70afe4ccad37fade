"""Checkpoints of our own, written by `engine.weights.writer`: packed tensors in safetensors, read back as they were.

Each shard's header says of every weight its format, group and shape; the tensors of a `Packed` named x are stored as
`x:codes`, `x:scale`, ... int4 codes lie in row order, since their order in memory differs between devices.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.config import ModelConfig
from engine.errors import CheckpointError
from engine.quant import int4
from engine.quant.formats import Packed
from engine.quant.grouped_int import pack_row_order, unpack_row_order
from engine.quant.linear import PackedExperts
from engine.text.tokenizer import Tokenizer
from engine.weights.files import GGUF_TOKENIZER, copy_tokenizer, open_shard, read_json, read_tensor, write_json
from engine.weights.layout import TensorSpec
from engine.weights.source import Weight, check_shape

MODEL_TYPE = "sweq"
VERSION = 1
HEADER = "weights"


class PackedSource:
    """A directory that `quantize` finished; see `engine.weights.source.Source`."""

    kind = "packed"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.where = str(path)
        record = read_json(path / "config.json")
        if record.get("version") != VERSION:
            raise CheckpointError(f"{path / 'config.json'}: version {record.get('version')} is not {VERSION}")
        self.config = config_from_record(record.get("config"), path / "config.json")
        self._shards = [path / name for name in record.get("shards", ())]
        self._weights: dict[str, tuple[Any, dict[str, Any]]] = {}
        for file in self._shards:
            if not file.is_file():
                raise CheckpointError(f"{file}: no such file; config.json lists it")
            shard = open_shard(file)
            self._weights |= {name: (shard, entry) for name, entry in shard_header(shard).items()}

    def files(self) -> list[Path]:
        return self._shards

    def types(self) -> dict[str, int]:
        return dict(Counter(str(entry["format"]) for _, entry in self._weights.values()))

    def unexpected(self, specs: list[TensorSpec]) -> list[str]:
        return sorted(set(self._weights) - {spec.name for spec in specs})

    def tokenizer(self) -> Tokenizer:
        stored = self.path / GGUF_TOKENIZER
        if stored.is_file():
            return Tokenizer.from_gguf(read_json(stored), str(stored))
        return Tokenizer.from_directory(self.path)

    def save_tokenizer(self, directory: Path) -> None:
        copy_tokenizer(self.path, directory)

    def extras(self) -> dict[str, Any]:
        return {}

    def read(self, spec: TensorSpec) -> Weight:
        if spec.name not in self._weights:
            raise CheckpointError(f"{self.where}: tensor {spec.name} is missing")
        shard, entry = self._weights[spec.name]
        check_shape(self.where, spec.name, tuple(entry["shape"]), spec.shape)
        stored = {name: read_tensor(shard, f"{spec.name}:{name}") for name in entry["tensors"]}
        return from_stored(entry["format"], spec.shape, stored, entry["group"])


def to_stored(weight: Weight) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A weight's entry in the shard's header, and its tensors as they lie in the file."""
    if isinstance(weight, Tensor):
        return {"format": "tensor", "shape": list(weight.shape), "group": 0, "tensors": ["value"]}, {"value": weight}
    tensors = {name: tensor.cpu() for name, tensor in weight.tensors.items()}
    if weight.format == "int4":
        tensors["codes"] = _each(tensors["codes"], lambda codes: pack_row_order(int4.unpack_codes(codes), 4))
    entry = {"format": weight.format, "shape": list(weight.shape), "group": weight.group, "tensors": list(tensors)}
    return entry, {name: tensor.contiguous() for name, tensor in tensors.items()}


def from_stored(format: str, shape: tuple[int, ...], tensors: dict[str, Tensor], group: int) -> Weight:
    """The inverse of `to_stored`."""
    if format == "tensor":
        return tensors["value"]
    if format == "int4":
        tensors["codes"] = _each(tensors["codes"], lambda codes: int4.pack_codes(unpack_row_order(codes, 4)))
    if len(shape) == 3:
        return PackedExperts(format, (shape[0], shape[1], shape[2]), tensors, group)
    return Packed(format, (shape[0], shape[1]), tensors, group)


def shard_header(shard: Any) -> dict[str, dict[str, Any]]:
    """What an open shard says of its weights, by name."""
    header: dict[str, dict[str, Any]] = json.loads((shard.metadata() or {}).get(HEADER, "{}"))
    return header


def config_from_record(record: Any, where: Path) -> ModelConfig:
    """The configuration that `dataclasses.asdict` made a record of; CheckpointError when it does not fit."""
    try:
        factors = record["rope_factors"]
        tuples = {"layer_types": tuple(record["layer_types"]), "rope_factors": factors and tuple(factors)}
        return ModelConfig(**(record | tuples))
    except (TypeError, KeyError) as error:
        raise CheckpointError(f"{where}: key 'config' is not a model configuration: {error}") from error


def save_gguf_tokenizer(metadata: Mapping[str, Any], directory: Path) -> None:
    """Write the tokenizer keys of GGUF metadata, for `PackedSource.tokenizer`."""
    write_json(directory / GGUF_TOKENIZER, {k: v for k, v in metadata.items() if k.startswith("tokenizer.")})


def _each(codes: Tensor, convert: Callable[[Tensor], Tensor]) -> Tensor:
    """Convert a matrix of codes, or each expert's in a stack."""
    return convert(codes) if codes.ndim == 2 else torch.stack([convert(expert) for expert in codes])
