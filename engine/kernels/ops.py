"""Which family of kernels serves a device. Families are modules of equal signatures; `reference` documents each."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import MappingProxyType
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from engine.kernels.reference_delta import DeltaWeights
from engine.kernels.reference_moe import Experts, Linear, Linears

logger = logging.getLogger(__name__)


class Kernels(Protocol):
    """What a family offers; `engine.kernels.reference` states shapes, dtypes and sources."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor: ...

    def add_rms_norm(self, hidden: Tensor, delta: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor: ...

    def silu_mul(self, gate: Tensor, up: Tensor) -> Tensor: ...

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor: ...

    def store_kv(self, key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slots: Tensor) -> None: ...

    def rotate_and_store(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cos: Tensor,
        sin: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        slots: Tensor,
    ) -> Tensor: ...

    def plan_attention(
        self, block_tables: Tensor, query_lens: tuple[int, ...], context_lens: tuple[int, ...], block_size: int
    ) -> Any: ...

    def paged_attention(
        self, query: Tensor, key_cache: Tensor, value_cache: Tensor, plan: Any, scale: float
    ) -> Tensor: ...

    def plan_runs(self, lens: tuple[int, ...], slots: Tensor) -> Any: ...

    def causal_conv(self, x: Tensor, weight: Tensor, window: Tensor, plan: Any) -> Tensor: ...

    def causal_conv_step(self, x: Tensor, weight: Tensor, window: Tensor, slots: Tensor) -> Tensor: ...

    def delta_gates(self, a: Tensor, b: Tensor, decay_rate: Tensor, dt_bias: Tensor) -> tuple[Tensor, Tensor]: ...

    def delta_rule_chunked(
        self, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor, plan: Any
    ) -> Tensor: ...

    def delta_rule_step(
        self, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor, slots: Tensor
    ) -> Tensor: ...

    def delta_net_step(
        self,
        qkvz: Tensor,
        ba: Tensor,
        weights: DeltaWeights,
        window: Tensor,
        state: Tensor,
        slots: Tensor,
        dtype: torch.dtype,
    ) -> Tensor: ...

    def gated_rms_norm(self, x: Tensor, gate: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor: ...

    def gated_mlp(self, x: Tensor, gate_up: Linears, down: Linear) -> Tensor: ...

    def route(self, logits: Tensor, top_k: int, renormalise: bool) -> tuple[Tensor, Tensor]: ...

    def moe(self, x: Tensor, gate_up: Experts, down: Experts, weights: Tensor, experts: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class HeadNorms:
    """Norms of query and key heads, float32 [D] each."""

    query: Tensor
    key: Tensor
    eps: float


@dataclass(frozen=True)
class MixedNumbers:
    """What kernels are told of a step with S single tokens and then R runs in T rows, as numbers on the device.

    All are int32 but `state_slots`. They may change there: contexts of 0, and runs and chunks without tokens, belong
    to nobody. `tables` holds a row of blocks for each single token and then each run, one every `width[0]` entries.
    """

    single_contexts: Tensor  # [S]
    run_contexts: Tensor  # [R, 4]: first row of the step, tokens, context, row of the tables
    tables: Tensor
    width: Tensor  # [1]
    tokens: int  # T
    state_slots: Tensor  # [R] int64
    runs: Tensor  # [R, 3]: first of the T rows, tokens, first chunk
    chunks: Tensor  # [N, 2]: first of the T rows, tokens
    places: Tensor  # [T, 2]: place within the run, run


class FusedKernels(Kernels, Protocol):
    """A family that also does several of these operations in one; the layers of `engine.model` are their references.

    `qkvz` [T, Hk · (K + K + rV + rV)] and `ba` [T, Hk · 2r] are the projections as they come, interleaved per key head;
    `window` and `recurrent` are one layer's states (`engine.cache.tensors.LayerState`). A slot below 0 belongs to no
    sequence: nothing is stored there and the result is zeros.
    """

    CAPTURED_TOKENS: int

    def delta_net_runs(
        self,
        qkvz: Tensor,
        ba: Tensor,
        weights: DeltaWeights,
        window: Tensor,
        recurrent: Tensor,
        plan: Any,
        dtype: torch.dtype,
    ) -> Tensor:
        """`delta_net_step` over runs, laid out by `plan_runs`: [T, Hv, V] in `dtype`."""
        ...

    def norm_rotate_and_store(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        norms: HeadNorms | None,
        cos: Tensor,
        sin: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        slots: Tensor,
    ) -> Tensor:
        """`rms_norm` of query and key heads [T, H, D], then `rotate_and_store`: the query in the cache's dtype.

        Heads of `key` and `value` adjoin; those of `query` may lie apart.
        """
        ...

    def gated_attention(
        self,
        query: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        plan: Any,
        scale: float,
        gate: Tensor | None,
        dtype: torch.dtype,
    ) -> Tensor:
        """`paged_attention` of a contiguous `query`, times sigmoid(gate) [T, H, D] if there is one, in `dtype`."""
        ...

    def plan_singles(self, contexts: Tensor, tables: Tensor, width: Tensor) -> Any:
        """`plan_attention` for one token of each sequence, from numbers that lie on the device and may change there.

        `contexts` is int32 [B]; `tables` int32 holds a row of blocks for each, one every `width[0]` entries. A context
        of 0 belongs to no sequence.
        """
        ...

    def plan_mixed(self, numbers: MixedNumbers) -> tuple[Any, Any]:
        """`plan_attention` of a step, and `plan_runs` of the runs in it; rows of nobody give zeros."""
        ...


def fused(kernels: Kernels) -> FusedKernels | None:
    """The family itself if it is a `FusedKernels`."""
    return cast(FusedKernels, kernels) if hasattr(kernels, "delta_net_runs") else None


_FAMILIES: Mapping[str, str] = MappingProxyType({"cpu": "cpu", "cuda": "triton"})


@cache
def family(device_type: str) -> Kernels:
    """The kernels for `device_type` ("cpu", "cuda", ...), said once in the log.

    A family is imported when a device asks for it: what it is built with need not be there for the others.
    """
    name = _FAMILIES.get(device_type, "reference")
    if name == "triton" and find_spec("triton") is None:
        logger.warning("the package triton is not installed: the portable kernels serve, several times slower")
        name = "cuda"
    logger.info("kernels for %s: %s", device_type, name)
    return cast(Kernels, import_module(f"engine.kernels.{name}"))


class SharedMoE(Protocol):
    """A family in which the shared expert takes part as one expert more."""

    def expert_stack(
        self, gate_up: object, down: object, shared_gate_up: object = None, shared_down: object = None
    ) -> Any:
        """The experts as the kernels take them; None where they know no such format or the shared one's differs."""
        ...

    def moe_of_stack(
        self, x: Tensor, stack: Any, weights: Tensor, experts: Tensor, shared_logit: Tensor | None
    ) -> Tensor:
        """`Kernels.moe` for x bfloat16, plus the shared expert times the sigmoid of `shared_logit` [T, 1]."""
        ...


def shared_moe(kernels: Kernels) -> SharedMoE | None:
    """The family itself if it is a `SharedMoE`."""
    return cast(SharedMoE, kernels) if hasattr(kernels, "moe_of_stack") else None
