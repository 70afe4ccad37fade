"""Writes a checkpoint at a quantization level, shard by shard, so that serving it needs no packing.

At no time is more than one shard in memory. A shard appears under its name only when it is whole and on disk, and
config.json, which makes the directory a checkpoint, comes last: after an interruption the same call continues with the
first shard that is missing.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from engine.errors import UserError
from engine.quant.formats import LEVELS, Level, check_level
from engine.weights.files import read_json, replacing, write_json
from engine.weights.layout import TensorSpec, tensor_specs
from engine.weights.loader import open_source, packed_at, resolve
from engine.weights.packed import HEADER, MODEL_TYPE, VERSION, to_stored
from engine.weights.source import Source

SHARD_BYTES = 2 << 30
_RECORD = "quantize.json"


def quantize(src: str, dst: Path, format: str, shard_bytes: int = SHARD_BYTES) -> Path:
    """Write model `src` packed at level `format` into directory `dst`, which `load` then reads back bit for bit.

    `shard_bytes` bounds a shard by the size its tensors would have in bfloat16. Continues an interrupted call with the
    same arguments; raises UserError when `dst` holds anything else, for a level that packs nothing, and as `load` does.
    """
    level = check_level(format)
    if level == "as-stored":
        known = ", ".join(name for name in LEVELS if name != level)
        raise UserError(f"format as-stored: there is nothing to quantize to; choose one of {known}")
    source = open_source(resolve(src))
    shards = _plan(tensor_specs(source.config), shard_bytes)
    _claim(dst, _record(src, source, level, shard_bytes))
    if (dst / "config.json").is_file():
        return dst
    names = [f"model-{index + 1:05d}-of-{len(shards):05d}.safetensors" for index in range(len(shards))]
    for name, specs in zip(names, tqdm(shards, desc=f"Writing {dst}", unit="shard", disable=None), strict=True):
        if not (dst / name).is_file():
            _write_shard(dst / name, source, specs, level)
    source.save_tokenizer(dst)
    record = {"model_type": MODEL_TYPE, "version": VERSION, "config": asdict(source.config), "shards": names}
    write_json(dst / "config.json", record | {"made_of": src, "level": level})
    return dst


def _record(src: str, source: Source, level: Level, shard_bytes: int) -> dict[str, Any]:
    """What makes two calls the same one."""
    sizes = {file.name: file.stat().st_size for file in source.files()}
    return {"src": src, "format": level, "shard_bytes": shard_bytes, "files": sizes}


def _claim(dst: Path, record: dict[str, Any]) -> None:
    """Make `dst` this call's directory; UserError when it is another's."""
    if dst.exists() and not dst.is_dir():
        raise UserError(f"{dst}: not a directory")
    file = dst / _RECORD
    if not file.is_file():
        if dst.is_dir() and any(dst.iterdir()):
            raise UserError(f"{dst}: not empty; choose a new directory")
        dst.mkdir(parents=True, exist_ok=True)
        write_json(file, record)
        return
    found = read_json(file)
    for key, value in record.items():
        if found.get(key) != value:
            raise UserError(f"{file}: {key} is {found.get(key)!r}, not {value!r}; choose a new directory")


def _plan(specs: Sequence[TensorSpec], shard_bytes: int) -> list[list[TensorSpec]]:
    """Tensors in reading order, cut where a shard's would exceed `shard_bytes` in bfloat16."""
    shards: list[list[TensorSpec]] = [[]]
    room = shard_bytes
    for spec in specs:
        size = 2 * math.prod(spec.shape)
        if shards[-1] and size > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append(spec)
        room -= size
    return shards


def _write_shard(file: Path, source: Source, specs: Sequence[TensorSpec], level: Level) -> None:
    header: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    for spec in specs:
        header[spec.name], stored = to_stored(packed_at(source.read(spec), spec, level, "cpu"))
        tensors |= {f"{spec.name}:{name}": tensor for name, tensor in stored.items()}
    with replacing(file) as temporary:
        save_file(tensors, temporary, metadata={HEADER: json.dumps(header)})
