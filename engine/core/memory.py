"""What a sequence holds while it runs: its blocks, its state slot, and its place in the prefix tree.

A sequence starts from the longest usable prefix of its tokens and gives to the tree what it computes. In a model of
attention alone, each block that is full is given at once. In a hybrid model blocks are of use only together with a
snapshot of the state after them, so they are given at the places where one is taken, on a grid of 64 tokens:

- the last grid point of the prompt, from which a retry and a next turn whose answer was changed go on;
- while an answer grows, its latest grid point, from which the next turn goes on;
- where a prompt parts from a text in the tree: the next one with the same beginning starts there.

With a `tile`, warm equals cold, bit for bit. How float sums round depends on how many tokens are computed together, so
prompts are cut at multiples of the tile whatever is cached, every generated token is computed by itself, each chunk
runs alone, and only whole tiles of prompts are shared: what a sequence finds is what it would have computed. The end of
a prompt and the answer are then computed again when the next turn sends them, at most a tile and the answer per turn.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from engine.cache.delta_state import DeltaState, SlotPool, plan_state
from engine.cache.paged_kv import BlockPool, plan_blocks
from engine.cache.prefix import PrefixNode, PrefixTree
from engine.cache.snapshots import SnapshotStore, Source, plan_snapshots
from engine.cache.swap import SwapSpace, plan_swap
from engine.cache.tensors import CacheTensors, LayerKV
from engine.config import EngineConfig, ModelConfig
from engine.core.sequence import Chunk, SequenceState

STATE_GRID = 64
"""Snapshots of DeltaNet states are taken after multiples of so many tokens, the length of the kernels' chunks."""


@dataclass(frozen=True)
class MemoryPlan:
    """KV blocks, and bytes of state snapshots on the device and in host memory."""

    blocks: int
    device_snapshot_bytes: int
    host_snapshot_bytes: int


def plan_memory(
    model: ModelConfig, engine: EngineConfig, activations: torch.dtype, keys: torch.dtype, free_bytes: int
) -> MemoryPlan:
    """Divide `free_bytes` of the device: first the running sequences' states, then snapshots, the rest KV blocks.

    UserError for a configuration that does not fit.
    """
    left = free_bytes - plan_state(model, engine, activations, free_bytes)
    device, host = plan_snapshots(model, engine, activations, left)
    return MemoryPlan(plan_blocks(model, engine, keys, left - device), device, host)


def cache_room(cache: CacheTensors, state: DeltaState | None, plan: MemoryPlan) -> dict[str, int]:
    """Bytes set aside for KV blocks, state slots and snapshots."""
    return {
        "kv_bytes": sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.kv.values()),
        "state_bytes": state.nbytes if state else 0,
        "snapshot_bytes_device": plan.device_snapshot_bytes,
        "snapshot_bytes_host": plan.host_snapshot_bytes,
    }


def open_memory(
    model: ModelConfig, engine: EngineConfig, plan: MemoryPlan, kv: Mapping[int, LayerKV], state: DeltaState | None
) -> "Memory":
    """The pools, prefix tree and swap space that a configuration asks for; `state` None for attention alone."""
    pool, tile = BlockPool(plan.blocks), engine.prefill_tile if engine.deterministic else None
    prefix = None
    if engine.prefix_cache:
        grid = tile or (math.lcm(STATE_GRID, engine.block_size) if state else engine.block_size)
        store = SnapshotStore(state, plan.device_snapshot_bytes, plan.host_snapshot_bytes) if state else None
        prefix = PrefixTree(pool, engine.block_size, grid, store)
    swap = SwapSpace(kv, state, plan_swap(engine.swap_bytes), 2 * model.active_weights)
    slots = SlotPool(state) if state else None
    return Memory(pool, prefix, slots, swap, block_size=engine.block_size, tile=tile)


class Memory:
    """Gives sequences blocks and slots and takes them back; the scheduler decides when.

    `prefix` None switches reuse off; `slots` is for models with DeltaNet layers. `tile`, a multiple of the prefix
    tree's grid, makes chunks deterministic. `hit_tokens` counts, by where it was found, what requests did not have to
    compute; `recomputed_tokens` what was computed before and had to be again.
    """

    def __init__(
        self,
        pool: BlockPool,
        prefix: PrefixTree | None,
        slots: SlotPool | None = None,
        swap: SwapSpace | None = None,
        *,
        block_size: int,
        tile: int | None = None,
    ) -> None:
        self.pool, self.prefix, self.slots, self.swap = pool, prefix, slots, swap
        self.hit_tokens: Counter[str] = Counter()
        self.prompt_tokens = self.recomputed_tokens = self.swapped_tokens = 0
        self._block_size, self._tile = block_size, tile

    def place(self, sequence: SequenceState, spare: int) -> bool:
        """Give a waiting sequence its cached prefix, blocks for all its tokens and a slot, or nothing at all.

        `spare` blocks are left for others.
        """
        if self.slots is not None and not self.slots.free:
            return False
        known = self.prefix.walk(self._reusable(sequence)) if self.prefix is not None else []
        path = self._start(sequence, known)
        if self.prefix is not None:
            sequence.blocks = self.prefix.acquire(path, sequence.request.session_id)
        if not self._take(sequence, self._blocks_for(len(sequence.token_ids)) - len(path), spare):
            self.pool.release(sequence.blocks)
            sequence.blocks = []
            return False
        self._take_slot(sequence)
        self._start_from(sequence, path)
        self._swap_in(sequence)
        sequence.marks = self._marks(sequence, len(known) * self._block_size)
        self._count(sequence, len(known) * self._block_size)
        return True

    def grow(self, sequence: SequenceState) -> bool:
        """Make room for one more token; False when there is none."""
        return self._take(sequence, self._blocks_for(sequence.computed + 1) - len(sequence.blocks))

    def grow_all(self, sequences: Sequence[SequenceState]) -> bool:
        """Make room for one more token of each; False, and nothing is changed, when there is not room for all."""
        missing = sum(self._blocks_for(sequence.computed + 1) - len(sequence.blocks) for sequence in sequences)
        if missing > self.pool.free + self.pool.evictable:
            return False
        return all(self.grow(sequence) for sequence in sequences)

    def borrow(self, sequence: SequenceState) -> bool:
        """Give a sequence outside the queues blocks and slot, without prefix reuse, until `release`; False: no room."""
        if self.slots is not None and not self.slots.free:
            return False
        if not self._take(sequence, self._blocks_for(len(sequence.token_ids))):
            return False
        self._take_slot(sequence)
        return True

    def next_tokens(self, sequence: SequenceState, budget: int) -> int:
        """How many of the pending tokens to compute next; 0 when `budget` has no room for a chunk that is not cut."""
        start = sequence.computed
        if self._tile is not None:
            whole = min(start // self._tile * self._tile + self._tile, sequence.prompt_tokens) - start
            wanted = max(whole, 1)
            return wanted if wanted <= budget else 0
        count = min(sequence.pending, budget)
        ahead = [mark - start for mark in sequence.marks if start < mark < start + count]
        return min(ahead, default=count)

    def commit(self, chunk: Chunk) -> None:
        """The chunk is computed: offer the prefix tree what others can start from."""
        sequence = chunk.sequence
        sequence.computed += chunk.tokens
        if self.prefix is None:
            return
        end = self._shareable(sequence, chunk)
        self._share_blocks(sequence, self.prefix, end // self._block_size)
        if end and sequence.node is not None and sequence.slot is not None:
            self._keep_state(sequence, sequence.node, self.prefix)

    def preempt(self, sequence: SequenceState) -> None:
        """Take back all that a sequence holds, but keep what it computed in host memory if that pays."""
        image = None
        if self.swap is not None and sequence.computed:
            used = self._blocks_for(sequence.computed)
            image = self.swap.save(sequence.computed, sequence.blocks[:used], sequence.slot)
        self.release(sequence)
        sequence.image = image

    def release(self, sequence: SequenceState) -> None:
        """Take back all that a sequence holds."""
        self._drop_image(sequence)
        if self.slots is not None and sequence.slot is not None:
            self.slots.release(sequence.slot)
        sequence.lost_tokens = sequence.computed
        self.pool.release(sequence.blocks)
        if self.prefix is not None and sequence.node is not None:
            self.prefix.leave(sequence.node)
        sequence.blocks, sequence.slot, sequence.node, sequence.answer_node = [], None, None, None
        sequence.computed = sequence.cached_blocks = 0

    def stats(self) -> dict[str, Any]:
        """Figures for a monitor: what is held and kept now, and counts of tokens since start."""
        snapshots = self.prefix.snapshots if self.prefix is not None else None
        return {
            "blocks_used": self.pool.held,
            "blocks_cached": self.pool.evictable,
            "blocks_total": self.pool.num_blocks,
            "state_slots_used": self.slots.held if self.slots else 0,
            "state_slots_total": self.slots.state.slots if self.slots else 0,
            "snapshots_device": snapshots.count("device") if snapshots else 0,
            "snapshots_host": snapshots.count("host") if snapshots else 0,
            "swap_bytes_used": self.swap.used if self.swap else 0,
            "swap_bytes_total": self.swap.budget if self.swap else 0,
            "prompt_tokens": self.prompt_tokens,
            "prefix_hit_tokens": self.hit_tokens.total(),
            "prefix_hit_tokens_device": self.hit_tokens["device"],
            "prefix_hit_tokens_host": self.hit_tokens["host"],
            "recomputed_tokens": self.recomputed_tokens,
            "swapped_tokens": self.swapped_tokens,
        }

    def end_session(self, session: str) -> int:
        """Forget what only this conversation left in the prefix tree; returns how many tokens that were."""
        return 0 if self.prefix is None else self.prefix.end_session(session) * self._block_size

    def pin(self, token_ids: Sequence[int]) -> int:
        """Keep the longest cached prefix of `token_ids` until `unpin`; returns its length in tokens."""
        return 0 if self.prefix is None else self.prefix.pin(token_ids)

    def unpin(self) -> bool:
        """Let pinned prefixes go, because a request can be served in no other way; False when there were none."""
        return self.prefix is not None and self.prefix.unpin_all()

    def _reusable(self, sequence: SequenceState) -> Sequence[int]:
        """The tokens that may come from the tree: with tiles, not those that were generated one by one."""
        if sequence.scores_prompt:
            return ()
        return sequence.token_ids if self._tile is None else sequence.request.prompt_ids

    def _start(self, sequence: SequenceState, known: list[PrefixNode]) -> list[PrefixNode]:
        """As much of the known path as a sequence can read; with an image, which has the state, as far as that."""
        if self.prefix is None:
            return []
        if sequence.image is not None:
            return known[: sequence.image.tokens // self._block_size]
        return self.prefix.usable(known)

    def _swap_in(self, sequence: SequenceState) -> None:
        """Go on from a sequence's image, if it has one, rather than from its prefix."""
        if self.swap is None or sequence.image is None:
            return
        self.swap.load(sequence.image, sequence.blocks, sequence.cached_blocks, sequence.slot)
        sequence.computed = sequence.image.tokens
        self.swapped_tokens += sequence.computed - sequence.cached_blocks * self._block_size
        self._drop_image(sequence)

    def _drop_image(self, sequence: SequenceState) -> None:
        if self.swap is not None and sequence.image is not None:
            self.swap.drop(sequence.image)
            sequence.image = None

    def _start_from(self, sequence: SequenceState, path: Sequence[PrefixNode]) -> None:
        sequence.computed = len(path) * self._block_size
        sequence.cached_blocks, sequence.node = len(path), path[-1] if path else None
        source = self._load_state(sequence) if sequence.image is None else "device"
        if sequence.cached_tokens is None:
            self.hit_tokens[source] += sequence.computed
            sequence.cache_source = source if sequence.computed else None

    def _load_state(self, sequence: SequenceState) -> Source:
        """Load the snapshot at a sequence's node, if there are states; says where its prefix came from."""
        if self.prefix is None or sequence.node is None or sequence.slot is None:
            return "device"
        return self.prefix.load_state(sequence.node, sequence.slot)

    def _count(self, sequence: SequenceState, known: int) -> None:
        if sequence.cached_tokens is None:
            sequence.cached_tokens = sequence.computed
            self.prompt_tokens += sequence.prompt_tokens
            self.recomputed_tokens += known - sequence.computed
        else:
            self.recomputed_tokens += max(0, sequence.lost_tokens - sequence.computed)

    def _marks(self, sequence: SequenceState, known: int) -> tuple[int, ...]:
        """Where to take snapshots on the way: the prompt's last grid point, and where it parts from the tree."""
        if self.prefix is None or self.slots is None:
            return ()
        grid = self.prefix.grid
        ends = (len(self._reusable(sequence)) - 1, known)
        return tuple(sorted({end // grid * grid for end in ends if end // grid * grid > sequence.computed}))

    def _shareable(self, sequence: SequenceState, chunk: Chunk) -> int:
        """The tokens, from the first, that the tree may be given now; 0 for none."""
        computed = sequence.computed
        if self.slots is None:
            return computed if self._tile is None else self._whole_tiles(sequence, self._tile)
        grows = self._tile is None and chunk.tokens == 1 and computed > sequence.prompt_tokens
        at_grid = self.prefix is not None and computed % self.prefix.grid == 0
        return computed if computed in sequence.marks or (grows and at_grid) else 0

    def _whole_tiles(self, sequence: SequenceState, tile: int) -> int:
        return min(sequence.computed, sequence.prompt_tokens) // tile * tile

    def _keep_state(self, sequence: SequenceState, node: PrefixNode, prefix: PrefixTree) -> None:
        """Snapshot the state after `node`; of an answer only the latest is kept."""
        if sequence.slot is None or not prefix.save_state(node, sequence.slot):
            return
        if sequence.computed > sequence.prompt_tokens:
            if sequence.answer_node is not None:
                prefix.drop_state(sequence.answer_node)
            sequence.answer_node = node

    def _share_blocks(self, sequence: SequenceState, prefix: PrefixTree, end: int) -> None:
        """Keep the first `end` blocks in the tree; where it has an equal one, read that and free the duplicate."""
        size = self._block_size
        for index in range(sequence.cached_blocks, end):
            key = prefix.key(sequence.token_ids, index * size)
            own = sequence.blocks[index]
            node = prefix.insert(sequence.node or prefix.root, key, own, sequence.request.session_id)
            if node.block != own:
                self.pool.retain([node.block])
                self.pool.release([own])
                sequence.blocks[index] = node.block
            sequence.node, sequence.cached_blocks = node, index + 1

    def _take(self, sequence: SequenceState, count: int, spare: int = 0) -> bool:
        """Allocate `count` blocks if `count + spare` could be had, evicting unread prefixes as needed."""
        if not count:
            return True  # the list stays the same object, by which others see that nothing was added
        if count + spare > self.pool.free + self.pool.evictable:
            return False
        if count > self.pool.free and self.prefix is not None:
            self.prefix.evict(count - self.pool.free)
        sequence.blocks = sequence.blocks + self.pool.allocate(count)
        return True

    def _take_slot(self, sequence: SequenceState) -> None:
        if self.slots is not None:
            sequence.slot = self.slots.allocate()

    def _blocks_for(self, tokens: int) -> int:
        return -(-tokens // self._block_size)
