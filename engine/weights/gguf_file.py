"""The GGUF container, version 2 and 3: metadata, tensor index and raw bytes.

Layout (GGUF specification, ggml/docs/gguf.md): magic, version, two counts, key-value pairs, tensor records
(name, dimensions fastest first, type, offset), padding to `general.alignment`, data. All little-endian.
"""

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from engine.errors import CheckpointError
from engine.quant.gguf_blocks import BLOCK_TYPES, BlockType

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS: Mapping[int, str] = MappingProxyType(
    {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
)
_BY_NUMBER: Mapping[int, BlockType] = MappingProxyType({kind.number: kind for kind in BLOCK_TYPES.values()})


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies: `shape` slowest dimension first, `start` in bytes from the beginning of the file."""

    name: str
    kind: BlockType
    shape: tuple[int, ...]
    start: int

    @property
    def nbytes(self) -> int:
        rows = 1
        for size in self.shape[:-1]:
            rows *= size
        return rows * self.kind.row_bytes(self.shape[-1])


class GGUFFile:
    """An open GGUF file: `metadata` by key and `tensors` by name; CheckpointError for anything malformed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            if file.read(4) != _MAGIC:
                raise CheckpointError(f"{path}: not a GGUF file (it does not begin with 'GGUF')")
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        cursor = _Cursor(self._map, path)
        version = cursor.scalar("I")
        if version not in _VERSIONS:
            raise CheckpointError(f"{path}: GGUF version {version} is not supported; versions 2 and 3 are")
        tensor_count, key_count = cursor.scalar("Q"), cursor.scalar("Q")
        self.metadata: dict[str, Any] = {}
        for _ in range(key_count):
            key = cursor.string()
            self.metadata[key] = cursor.value(cursor.scalar("I"))
        self.tensors = self._index(cursor, tensor_count)

    def _index(self, cursor: "_Cursor", count: int) -> dict[str, StoredTensor]:
        records = [(cursor.string(), cursor.dimensions(), cursor.scalar("I"), cursor.scalar("Q")) for _ in range(count)]
        alignment = int(self.metadata.get("general.alignment", 32))
        data = -(-cursor.position // alignment) * alignment
        tensors = {name: self._stored(name, shape, kind, data + at) for name, shape, kind, at in records}
        for tensor in tensors.values():
            if tensor.start + tensor.nbytes > len(self._map):
                raise CheckpointError(
                    f"{self.path}: truncated: tensor {tensor.name} ends at byte {tensor.start + tensor.nbytes}"
                    f" of a file of {len(self._map)}"
                )
        return tensors

    def _stored(self, name: str, shape: tuple[int, ...], number: int, start: int) -> StoredTensor:
        kind = _BY_NUMBER.get(number)
        if kind is None:
            known = ", ".join(BLOCK_TYPES)
            raise CheckpointError(f"{self.path}: tensor {name} has unknown type number {number}; known are {known}")
        if not shape or shape[-1] % kind.width:
            raise CheckpointError(f"{self.path}: tensor {name} has shape {list(shape)}, no multiple of {kind.width}")
        return StoredTensor(name, kind, shape, start)

    def blocks(self, name: str) -> Tensor:
        """A copy of a tensor's bytes, uint8 [..., row_bytes]; the name must be in `tensors`."""
        stored = self.tensors[name]
        raw = torch.frombuffer(self._map, dtype=torch.uint8, count=stored.nbytes, offset=stored.start)
        return raw.reshape(*stored.shape[:-1], -1).clone()


class _Cursor:
    """Reads values one after another; running off the end is a CheckpointError."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.data = data
        self.path = path
        self.position = 4

    def _take(self, size: int) -> bytes:
        end = self.position + size
        if end > len(self.data):
            raise CheckpointError(f"{self.path}: truncated: the header runs past the end at byte {len(self.data)}")
        taken = self.data[self.position : end]
        self.position = end
        return taken

    def scalar(self, code: str) -> Any:
        return struct.unpack("<" + code, self._take(struct.calcsize("<" + code)))[0]

    def string(self) -> str:
        return self._take(self.scalar("Q")).decode("utf-8", errors="replace")

    def dimensions(self) -> tuple[int, ...]:
        """A tensor's shape, slowest dimension first."""
        count = self.scalar("I")
        return tuple(self.scalar("Q") for _ in range(count))[::-1]

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self._array(self.scalar("I"), self.scalar("Q"))
        if kind not in _SCALARS:
            raise CheckpointError(f"{self.path}: metadata value of unknown type {kind} at byte {self.position}")
        return self.scalar(_SCALARS[kind])

    def _array(self, kind: int, count: int) -> list[Any]:
        if kind in _SCALARS:
            code = f"<{count}{_SCALARS[kind]}"
            return list(struct.unpack(code, self._take(struct.calcsize(code))))
        return [self.value(kind) for _ in range(count)]
