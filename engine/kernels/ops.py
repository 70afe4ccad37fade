"""Which family of kernels serves a device. Families are modules of equal signatures; `reference` documents each."""

import logging
from collections.abc import Mapping
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor

from engine.kernels import cpu, reference

logger = logging.getLogger(__name__)


class Kernels(Protocol):
    """What a family offers; `engine.kernels.reference` states shapes, dtypes and sources."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor: ...

    def silu_mul(self, gate: Tensor, up: Tensor) -> Tensor: ...

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor: ...

    def store_kv(self, key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slots: Tensor) -> None: ...

    def plan_attention(
        self, block_tables: Tensor, query_lens: tuple[int, ...], context_lens: tuple[int, ...], block_size: int
    ) -> Any: ...

    def paged_attention(
        self, query: Tensor, key_cache: Tensor, value_cache: Tensor, plan: Any, scale: float
    ) -> Tensor: ...


_FAMILIES: Mapping[str, tuple[str, Kernels]] = {"cpu": ("cpu", cpu)}


@cache
def family(device_type: str) -> Kernels:
    """The kernels for `device_type` ("cpu", "cuda", ...), said once in the log."""
    name, kernels = _FAMILIES.get(device_type, ("reference", reference))
    logger.info("kernels for %s: %s", device_type, name)
    return kernels
