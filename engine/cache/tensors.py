"""The memory behind the caches, as the model sees it: tensors per layer, nothing about who owns what."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class LayerKV:
    """Keys and values of one attention layer, each [num_blocks, block_size, kv_heads, head_dim]."""

    keys: Tensor
    values: Tensor


@dataclass(frozen=True)
class CacheTensors:
    """What layers read and write between steps; `kv` is keyed by the index of the attention layer."""

    kv: Mapping[int, LayerKV]
    block_size: int
