"""Paged KV memory: who owns which block (`BlockPool`), how many there are, and the tensors behind them."""

import heapq
import math
from collections.abc import Iterable

import psutil
import torch

from engine.cache.tensors import CacheTensors, LayerKV, zeros
from engine.config import EngineConfig, ModelConfig
from engine.errors import UserError

FREE_SHARE = {"cpu": 0.25, "cuda": 0.85}
"""Share of free memory that the KV pool may take; a CPU machine also runs the sandboxes and the tests."""


class OutOfBlocks(Exception):  # noqa: N818 - a condition the scheduler handles, not a fault
    """More blocks were asked for than are free; nothing was allocated."""


class BlockPool:
    """Reference counts of a fixed number of KV blocks.

    A block is free (no reference), held by sequences, or kept by the prefix tree (`mark_cached`), alone or beside
    sequences. `evictable` counts the blocks that only the tree still holds. The lowest free block is handed out first:
    contexts then tend to be runs of memory that attention reads in place.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.evictable = 0
        self._free = list(range(num_blocks))
        self._references = [0] * num_blocks
        self._cached = bytearray(num_blocks)

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def held(self) -> int:
        """Blocks that a sequence uses (whether or not the tree keeps them too)."""
        return self.num_blocks - self.free - self.evictable

    def references(self, block: int) -> int:
        return self._references[block]

    def allocate(self, count: int) -> list[int]:
        """Take `count` free blocks with one reference each; OutOfBlocks, with nothing taken, when there are fewer."""
        if count > len(self._free):
            raise OutOfBlocks(f"{count} KV blocks wanted, {len(self._free)} of {self.num_blocks} free")
        blocks = [heapq.heappop(self._free) for _ in range(count)]
        for block in blocks:
            self._references[block] = 1
        return blocks

    def retain(self, blocks: Iterable[int]) -> None:
        """Add a reference to each block; ValueError if one is free."""
        for block in blocks:
            if not self._references[block]:
                raise ValueError(f"block {block} is free and cannot be retained")
            self.evictable -= self._only_cached(block)
            self._references[block] += 1

    def release(self, blocks: Iterable[int]) -> None:
        """Drop a reference to each block, freeing those with none left; ValueError if one is free already."""
        for block in blocks:
            if not self._references[block]:
                raise ValueError(f"block {block} was released more often than taken")
            self.evictable -= self._only_cached(block)
            self._references[block] -= 1
            self.evictable += self._only_cached(block)
            if not self._references[block]:
                heapq.heappush(self._free, block)

    def mark_cached(self, block: int) -> None:
        """The prefix tree takes a reference of its own."""
        self.retain([block])
        self._cached[block] = 1

    def drop_cached(self, block: int) -> None:
        """The prefix tree gives its reference back."""
        self.evictable -= self._only_cached(block)
        self._cached[block] = 0
        self.release([block])

    def _only_cached(self, block: int) -> bool:
        return bool(self._cached[block]) and self._references[block] == 1


def attention_layers(config: ModelConfig) -> list[int]:
    return [layer for layer, kind in enumerate(config.layer_types) if kind == "full_attention"]


def block_bytes(config: ModelConfig, block_size: int, dtype: torch.dtype) -> int:
    """Bytes of one block over all attention layers, keys and values."""
    return 2 * len(attention_layers(config)) * block_size * config.num_kv_heads * config.head_dim * dtype.itemsize


def plan_blocks(config: ModelConfig, engine: EngineConfig, dtype: torch.dtype, free_bytes: int) -> int:
    """How many blocks to allocate: `engine.num_blocks`, or what free memory allows up to what could ever be used.

    UserError when an explicit `max_context` does not fit.
    """
    context = engine.max_context or config.max_position
    needed = math.ceil(context / engine.block_size)
    if engine.num_blocks is not None:
        blocks = engine.num_blocks
    else:
        blocks = min(needed * engine.max_running, free_bytes // block_bytes(config, engine.block_size, dtype))
    if engine.max_context is not None and blocks < needed:
        raise UserError(
            f"max_context {context} needs {needed} KV blocks of {engine.block_size} tokens but only {blocks} fit: "
            f"lower max_context to {blocks * engine.block_size} or free memory"
        )
    if blocks < 1:
        raise UserError("no memory is left for the KV cache: lower max_context or free memory")
    return blocks


def usable_memory(device: torch.device) -> int:
    """Bytes that the KV pool may take on `device`."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    return int(free * FREE_SHARE[device.type])


def allocate_cache(
    config: ModelConfig, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
) -> CacheTensors:
    """Zeroed KV tensors for every attention layer."""
    shape = (num_blocks, block_size, config.num_kv_heads, config.head_dim)
    layers = {i: LayerKV(zeros(shape, dtype, device), zeros(shape, dtype, device)) for i in attention_layers(config)}
    return CacheTensors(layers, block_size)
