"""Preempted sequences in host memory: what they had computed, so that it need not be computed again.

When blocks run out, the latest sequence gives its own up. Whether it is cheaper to copy them away and back or to
compute them again follows from how much arithmetic a token takes and how many bytes it left: copying costs two
transfers, computing two operations per active weight. A full prefix tree often still has most of the blocks when the
sequence returns; it then reads these, and only the others are copied back. The copies are bit for bit what they were.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor

from engine.cache.delta_state import DeltaSnapshot, DeltaState
from engine.cache.snapshots import SHARE_OF_FREE
from engine.cache.tensors import LayerKV

OPERATIONS_PER_BYTE = {"cpu": 20, "cuda": 10_000}
"""Operations that a device does while a byte goes to host memory: 100 GFLOP/s over 5 GB/s, 500 TFLOP/s over 50 GB/s."""


@dataclass(eq=False)
class SwapImage:
    """A sequence's first `tokens` tokens: per layer keys and values [blocks, block_size, kv_heads, head_dim], state."""

    tokens: int
    layers: list[tuple[Tensor, Tensor]]
    state: DeltaSnapshot | None

    @property
    def nbytes(self) -> int:
        return sum(k.nbytes + v.nbytes for k, v in self.layers) + (self.state.nbytes if self.state else 0)


class SwapSpace:
    """Images of sequences over these cache tensors, `budget` bytes of them at most.

    `operations_per_token` is what computing one token again takes.
    """

    def __init__(
        self, kv: Mapping[int, LayerKV], state: DeltaState | None, budget: int, operations_per_token: int
    ) -> None:
        self.used = 0
        self._layers = list(kv.values())
        self._state = state
        self.budget = budget
        self._operations = operations_per_token

    def save(self, tokens: int, blocks: Sequence[int], slot: int | None) -> SwapImage | None:
        """Copy `tokens` tokens in `blocks` and the state in `slot`; None where there is no room or it does not pay."""
        size = self._bytes(len(blocks), slot)
        if self.used + size > self.budget or not self._pays(tokens, size):
            return None
        self.used += size
        layers = copy_blocks_out(self._layers, blocks)
        state = self._state.save(slot).to_host() if self._state is not None and slot is not None else None
        return SwapImage(tokens, layers, state)

    def load(self, image: SwapImage, blocks: Sequence[int], known: int, slot: int | None) -> None:
        """Copy an image's blocks but for the first `known` to their new places in `blocks`, and its state to `slot`."""
        copy_blocks_in(self._layers, image.layers, blocks, known)
        if self._state is not None and slot is not None and image.state is not None:
            self._state.load(slot, image.state)

    def drop(self, image: SwapImage) -> None:
        """Give an image's room back."""
        self.used -= image.nbytes

    def _bytes(self, blocks: int, slot: int | None) -> int:
        each = sum(layer.keys[:1].nbytes + layer.values[:1].nbytes for layer in self._layers)
        state = self._state.nbytes // self._state.slots if self._state is not None and slot is not None else 0
        return blocks * each + state

    def _pays(self, tokens: int, size: int) -> bool:
        device = self._layers[0].keys.device.type if self._layers else "cpu"
        return tokens * self._operations > 2 * size * OPERATIONS_PER_BYTE.get(device, 0)


def plan_swap(swap_bytes: int | None) -> int:
    """Bytes for images: as configured, else a share of what is free in host memory."""
    return int(psutil.virtual_memory().available * SHARE_OF_FREE) if swap_bytes is None else swap_bytes


def copy_blocks_out(layers: Sequence[LayerKV], blocks: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of `blocks` in host memory, for each layer."""
    return [(_to_host(layer.keys, blocks), _to_host(layer.values, blocks)) for layer in layers]


def copy_blocks_in(
    layers: Sequence[LayerKV], copies: Sequence[tuple[Tensor, Tensor]], blocks: Sequence[int], known: int
) -> None:
    """Write what `copy_blocks_out` gave, but for its first `known` blocks, to their new places in `blocks`."""
    stop = copies[0][0].shape[0] if copies else known
    for layer, (keys, values) in zip(layers, copies, strict=True):
        places = torch.tensor(blocks[known:stop], dtype=torch.int64, device=layer.keys.device)
        layer.keys[places] = keys[known:].to(layer.keys.device)
        layer.values[places] = values[known:].to(layer.values.device)


def _to_host(cache: Tensor, blocks: Sequence[int]) -> Tensor:
    return cache[torch.tensor(blocks, dtype=torch.int64, device=cache.device)].cpu()
