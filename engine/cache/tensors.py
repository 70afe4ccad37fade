"""The memory behind the caches, as the model sees it: tensors per layer, nothing about who owns what."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class LayerKV:
    """Keys and values of one attention layer, each [num_blocks, block_size, kv_heads, head_dim]."""

    keys: Tensor
    values: Tensor


@dataclass(frozen=True)
class LayerState:
    """State of one DeltaNet layer: `window` [slots, C, W - 1], newest input last, and `recurrent` [slots, Hv, K, V].

    The recurrent state lies key-major: S[k, v], read as o = Sᵀ q.
    """

    window: Tensor
    recurrent: Tensor


@dataclass(frozen=True)
class CacheTensors:
    """What layers read and write between steps, keyed by layer index: `kv` of attention, `delta` of DeltaNet layers."""

    kv: Mapping[int, LayerKV]
    block_size: int
    delta: Mapping[int, LayerState] = field(default_factory=dict)


def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros; on CPU from calloc by way of numpy, so that the system commits a page only when it is first used."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)).view(dtype).view(shape)
