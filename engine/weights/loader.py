"""Turns the name of a model into its weights in memory, at a quantization level."""

import hashlib
import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from torch import Tensor
from tqdm import tqdm

from engine.config import ModelConfig
from engine.errors import CheckpointError, UserError
from engine.quant.formats import Level, Packed, check_level, recipe, repack
from engine.quant.linear import PackedExperts, repack_experts
from engine.text.tokenizer import Tokenizer
from engine.weights.files import read_json
from engine.weights.gguf import GGUFSource
from engine.weights.layout import TensorSpec, tensor_specs
from engine.weights.packed import MODEL_TYPE, PackedSource
from engine.weights.safetensors import SafetensorsSource
from engine.weights.shard import Shard
from engine.weights.source import Source, Weight
from engine.weights.synthetic import PREFIX, SyntheticShape, SyntheticSource, parse

_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt"]


@dataclass(frozen=True)
class Checkpoint:
    """A model in memory.

    `weights` maps canonical names (see `engine.weights.layout`) to `Packed` matrices, `PackedExperts` stacks and
    float32 tensors; a tied lm_head is absent. `identity` says what was loaded: `model`, `source`, `quant`, `recipe`
    (class -> format), `group` (class -> group size), `source_types` (type -> count), `sha256` (file -> digest).
    """

    config: ModelConfig
    weights: Mapping[str, Weight]
    tokenizer: Tokenizer
    chat_template: str | None
    identity: dict[str, Any]


def load(model: str, quant: str, device: str = "cpu", rank: int = 0, size: int = 1) -> Checkpoint:
    """Load `model` (see `resolve`) with its weights packed at level `quant` on `device`.

    With `size` above 1 only the part of rank `rank` is kept (see `engine.weights.shard`), cut from what one rank would
    hold; `config` stays the whole model's. Tensors are read and packed one after another, so that beside the result
    only one tensor is held. Raises UserError for an unknown level or model or a size that does not divide it,
    CheckpointError for a checkpoint that cannot be read or divided.
    """
    level = check_level(quant)
    source = open_source(resolve(model), device)
    specs = tensor_specs(source.config)
    unexpected = source.unexpected(specs)
    if unexpected:
        raise CheckpointError(
            f"{source.where}: holds tensors that {source.config.architecture} does not have: {unexpected[0]}"
            + (f" and {len(unexpected) - 1} more" if len(unexpected) > 1 else "")
        )
    shard = Shard.of(source.config, rank, size, level, source.types())
    bar = tqdm(specs, desc=f"Loading {model}", unit="tensor", leave=False, disable=True if rank else None)
    cut = ((spec, shard.cut(packed_at(source.read(spec), spec, level, device), spec)) for spec in bar)
    weights = {spec.name: weight for spec, weight in cut if weight is not None}
    tokenizer = source.tokenizer()
    identity = {"model": model, "source": source.kind, "quant": level} | _described(specs, weights)
    if size > 1:
        identity["tensor_parallel_size"] = size
    identity |= {"source_types": source.types(), "sha256": {f.name: sha256(f) for f in source.files()}}
    return Checkpoint(source.config, weights, tokenizer, tokenizer.chat_template, identity | source.extras())


def resolve(model: str) -> Path | SyntheticShape:
    """The file, directory or synthetic shape that `model` names.

    `model` is a directory of safetensors, a `.gguf` file, `package:<python package>/<file>` for a file that an
    installed package carries, `synthetic:<shape>[@seed]`, or a hub id `owner/name`, which is fetched.
    """
    if model.startswith(PREFIX):
        return parse(model)
    if model.startswith("package:"):
        return _package_file(model)
    path = Path(model).expanduser()
    if path.exists():
        return path
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", model) and not model.endswith(".gguf"):
        return _fetched(model)
    raise UserError(f"model {model}: no such file or directory, and not a hub id, package: file or synthetic: shape")


def open_source(path: Path | SyntheticShape, device: str = "cpu") -> Source:
    """Open a `.gguf` file, a model directory or a synthetic shape, whose weights are made on `device`."""
    if isinstance(path, SyntheticShape):
        return SyntheticSource(path.config, path.seed, device)
    if path.is_dir():
        packed = read_json(path / "config.json").get("model_type") == MODEL_TYPE
        return PackedSource(path) if packed else SafetensorsSource(path)
    if path.suffix == ".gguf":
        return GGUFSource(path)
    raise UserError(f"model {path}: neither a directory nor a .gguf file")


def packed_at(stored: Weight, spec: TensorSpec, level: Level, device: str) -> Weight:
    """A tensor as read, in the format that the level's recipe gives its class; CheckpointError if it does not fit."""
    format = recipe(level, spec.tensor_class)
    try:
        if isinstance(stored, Packed):
            return repack(stored, format).to(device)
        if isinstance(stored, PackedExperts):
            return repack_experts(stored, format).to(device)
    except CheckpointError as error:
        raise CheckpointError(f"tensor {spec.name}: {error}") from error
    return stored.to(device)


def memory_report(checkpoint: Checkpoint) -> dict[str, int]:
    """Bytes that the weights take in memory, per tensor class; their sum is the whole, of a rank's part the part."""
    totals: dict[str, int] = {}
    for spec in tensor_specs(checkpoint.config):
        if spec.name in checkpoint.weights:
            size = checkpoint.weights[spec.name].nbytes
            totals[spec.tensor_class] = totals.get(spec.tensor_class, 0) + size
    return totals


def sha256(file: Path) -> str:
    """Hex digest of a file's bytes, read in pieces."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _package_file(model: str) -> Path:
    package, _, name = model.removeprefix("package:").partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"model {model}: no Python package {package!r} is installed")
    path = Path(next(iter(spec.submodule_search_locations))) / name
    if not name or not path.is_file():
        raise UserError(f"model {model}: package {package!r} carries no file {name!r}")
    return path


def _fetched(hub_id: str) -> Path:
    try:
        return Path(snapshot_download(hub_id, allow_patterns=_HUB_FILES))
    except Exception as error:  # the client raises many unrelated types; all mean that the model is not to be had
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"model {hub_id}: no such directory, and the hub does not give it: {reason}") from error


def _described(specs: list[TensorSpec], weights: Mapping[str, Weight]) -> dict[str, Any]:
    """Formats and group sizes per tensor class as they are in memory; several in a class are joined by a comma."""
    formats: dict[str, set[str]] = {}
    groups: dict[str, set[int]] = {}
    for spec in specs:
        weight = weights.get(spec.name)
        if weight is None:
            continue
        format = "f32" if isinstance(weight, Tensor) else weight.format
        formats.setdefault(spec.tensor_class, set()).add(format)
        if not isinstance(weight, Tensor) and weight.group:
            groups.setdefault(spec.tensor_class, set()).add(weight.group)
    return {
        "recipe": {kind: ",".join(sorted(found)) for kind, found in formats.items()},
        "group": {kind: ",".join(str(size) for size in sorted(found)) for kind, found in groups.items()},
    }
