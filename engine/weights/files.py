"""Files of a checkpoint directory: JSON and safetensors, read with clear errors and written whole or not at all."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from engine.errors import CheckpointError

GGUF_TOKENIZER = "tokenizer.gguf.json"  # the tokenizer keys of GGUF metadata, in directories of our own
_TOKENIZER_FILES = (
    GGUF_TOKENIZER,
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "chat_template.jinja",
)


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy those files of directory `source` that a tokenizer is made from."""
    for name in _TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def write_json(file: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object so that `file` is whole or absent, whatever interrupts."""
    with replacing(file) as temporary:
        temporary.write_text(json.dumps(value, indent=1), encoding="utf-8")


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A temporary file that becomes `file`, on disk, when the block ends without an exception."""
    temporary = file.with_name(f".{file.name}.part")
    yield temporary
    temporary.chmod(0o644)  # safetensors makes files that only their owner reads
    with temporary.open("rb") as stream:
        os.fsync(stream.fileno())
    temporary.replace(file)
    directory = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in `file`; CheckpointError when it is missing or is not one."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{file}: no such file; a model directory needs one") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{file}: not readable as JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{file}: a JSON object is needed")
    return value


def open_shard(file: Path) -> Any:
    """Open a safetensors file; CheckpointError when it is truncated or none at all."""
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: not a readable safetensors file: {error}") from error


def read_tensor(shard: Any, name: str) -> Tensor:
    """A tensor of an open safetensors file in memory of its own.

    The library hands out a view of the mapped file, at any alignment and at the mercy of whoever writes to it.
    """
    mapped: Tensor = shard.get_tensor(name)
    return mapped.clone()


def shard_names(shard: Any) -> list[str]:
    """The names of the tensors in an open safetensors file."""
    return list(shard.keys())
