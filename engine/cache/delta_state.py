"""The fixed-size state of DeltaNet layers: one slot per running sequence, whatever its length.

A slot holds, for every linear layer, the last inputs of the convolution and the recurrent matrix of each value head. It
is changed in place by each step and so belongs to one sequence alone: sharing a prefix means copying a slot, or saving
it as a snapshot and loading it later. All layers of a slot lie in two tensors, so that each of these is two copies.
"""

import heapq
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.cache.tensors import LayerState, zeros
from engine.config import EngineConfig, ModelConfig
from engine.errors import UserError


class OutOfSlots(Exception):  # noqa: N818 - a condition the scheduler handles, not a fault
    """A slot was asked for when none was free."""


@dataclass(frozen=True)
class DeltaSnapshot:
    """One slot's content: `window` [layers, C, W - 1] and `recurrent` [layers, Hv, K, V]."""

    window: Tensor
    recurrent: Tensor

    @property
    def nbytes(self) -> int:
        return self.window.nbytes + self.recurrent.nbytes

    def to_host(self) -> "DeltaSnapshot":
        """The same in host memory."""
        return DeltaSnapshot(self.window.cpu(), self.recurrent.cpu())


class DeltaState:
    """State of all linear layers: `window` [layers, slots, C, W - 1], `recurrent` [layers, slots, Hv, K, V].

    C are the convolution's channels q|k|v, W its width. The window has the dtype of activations, so that it holds them
    exactly; the recurrent state is float32, or bfloat16 at half the memory and some accuracy.
    """

    def __init__(
        self,
        config: ModelConfig,
        slots: int,
        window_dtype: torch.dtype,
        state_dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.slots = slots
        self.layer_indices = linear_layers(config)
        layers = len(self.layer_indices)
        self.window = zeros((layers, slots, *window_shape(config)), window_dtype, device)
        self.recurrent = zeros((layers, slots, *recurrent_shape(config)), state_dtype, device)

    @property
    def layers(self) -> Mapping[int, LayerState]:
        """Views of the tensors by the index of the layer in the model."""
        return {
            layer: LayerState(self.window[place], self.recurrent[place])
            for place, layer in enumerate(self.layer_indices)
        }

    @property
    def nbytes(self) -> int:
        return self.window.nbytes + self.recurrent.nbytes

    def zero(self, slot: int) -> None:
        """Set a slot to the state before a sequence's first token."""
        self.window[:, slot] = 0
        self.recurrent[:, slot] = 0

    def copy(self, source: int, target: int) -> None:
        self.window[:, target] = self.window[:, source]
        self.recurrent[:, target] = self.recurrent[:, source]

    def save(self, slot: int) -> DeltaSnapshot:
        """A copy of a slot on the same device, bit for bit."""
        return DeltaSnapshot(self.window[:, slot].clone(), self.recurrent[:, slot].clone())

    def load(self, slot: int, snapshot: DeltaSnapshot) -> None:
        """Make a slot what it was when the snapshot was saved."""
        self.window[:, slot] = snapshot.window.to(self.window.device)
        self.recurrent[:, slot] = snapshot.recurrent.to(self.recurrent.device)


def plan_state(config: ModelConfig, engine: EngineConfig, window_dtype: torch.dtype, free_bytes: int) -> int:
    """Bytes of the slots that `engine.max_running` sequences need, and of one more that is lent out.

    0 for a model without DeltaNet layers; UserError when they do not fit into `free_bytes`.
    """
    needed = (engine.max_running + 1) * slot_bytes(config, window_dtype, state_dtype(engine))
    if needed > free_bytes:
        raise UserError(
            f"max_running {engine.max_running} needs {needed >> 20} MiB of DeltaNet state but only "
            f"{free_bytes >> 20} MiB are free: lower max_running, or set delta_state_dtype to bfloat16"
        )
    return needed


def allocate_state(
    config: ModelConfig, engine: EngineConfig, window_dtype: torch.dtype, device: torch.device
) -> DeltaState | None:
    """Zeroed slots as `plan_state` counts them; None for a model without DeltaNet layers."""
    if not linear_layers(config):
        return None
    return DeltaState(config, engine.max_running + 1, window_dtype, state_dtype(engine), device)


def state_dtype(engine: EngineConfig) -> torch.dtype:
    return torch.bfloat16 if engine.delta_state_dtype == "bfloat16" else torch.float32


class SlotPool:
    """Which slots of a state are free. The lowest is handed out first, zeroed: running slots then tend to adjoin."""

    def __init__(self, state: DeltaState) -> None:
        self.state = state
        self._free = list(range(state.slots))
        self._held = bytearray(state.slots)

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def held(self) -> int:
        return self.state.slots - self.free

    def allocate(self) -> int:
        """Take a free slot, zeroed; OutOfSlots when there is none."""
        if not self._free:
            raise OutOfSlots(f"all {self.state.slots} DeltaNet state slots are in use")
        slot = heapq.heappop(self._free)
        self._held[slot] = 1
        self.state.zero(slot)
        return slot

    def release(self, slot: int) -> None:
        """Give a slot back; ValueError if it is free already."""
        if not self._held[slot]:
            raise ValueError(f"DeltaNet state slot {slot} was released more often than taken")
        self._held[slot] = 0
        heapq.heappush(self._free, slot)


def linear_layers(config: ModelConfig) -> list[int]:
    return [layer for layer, kind in enumerate(config.layer_types) if kind == "linear_attention"]


def window_shape(config: ModelConfig) -> tuple[int, int]:
    """[C, W - 1] of one layer's convolution window."""
    keys = config.linear_num_key_heads * config.linear_key_head_dim
    values = config.linear_num_value_heads * config.linear_value_head_dim
    return 2 * keys + values, config.linear_conv_kernel - 1


def recurrent_shape(config: ModelConfig) -> tuple[int, int, int]:
    """[Hv, K, V] of one layer's recurrent state."""
    return config.linear_num_value_heads, config.linear_key_head_dim, config.linear_value_head_dim


def slot_bytes(config: ModelConfig, window_dtype: torch.dtype, state_dtype: torch.dtype) -> int:
    """Bytes of one slot over all linear layers; 0 for a model without them."""
    layers = len(linear_layers(config))
    if not layers:
        return 0
    channels, reach = window_shape(config)
    heads, keys, values = recurrent_shape(config)
    return layers * (channels * reach * window_dtype.itemsize + heads * keys * values * state_dtype.itemsize)
