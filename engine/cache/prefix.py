"""The prefix tree: which token prefixes are still in memory, and who may be forgotten first.

A node is one full block of tokens below its parent, so a path from the root spells a prefix and lists the blocks that
hold it. The tree owns one reference to each node's block. A sequence that reads a cached prefix takes references of its
own to all blocks of the path; a node no sequence reads and without children may be evicted, least recently used first.
Since readers hold whole paths, everything below an unread node is unread too: all `pool.evictable` blocks can be had.

State that is not addressed by token (a recurrent layer's) belongs at the node after which it was taken: a node is the
place for a snapshot, and evicting the node is what releases it.
"""

import heapq
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

from engine.cache.paged_kv import BlockPool


@dataclass(eq=False)
class PrefixNode:
    """One full block: `tokens` are the block's own, `block` holds their keys and values."""

    tokens: tuple[int, ...]
    block: int  # -1 once evicted
    parent: "PrefixNode | None"
    last_used: int = 0
    children: dict[tuple[int, ...], "PrefixNode"] = field(default_factory=dict)


class PrefixTree:
    """Longest-prefix lookup over full blocks with LRU eviction. `hit_tokens` counts since start."""

    def __init__(self, pool: BlockPool, block_size: int) -> None:
        self.root = PrefixNode((), -1, None)
        self.hit_tokens = 0
        self._pool = pool
        self._block_size = block_size
        self._size = 0
        self._clock = itertools.count(1)
        self._leaves: list[tuple[int, int, PrefixNode]] = []
        self._entries = itertools.count()

    def __len__(self) -> int:
        """Blocks kept."""
        return self._size

    def match(self, token_ids: Sequence[int]) -> list[PrefixNode]:
        """The path of the longest cached prefix of `token_ids`, never all of it: one token must be left to compute."""
        path, node = [], self.root
        for start in range(0, len(token_ids) - self._block_size, self._block_size):
            child = node.children.get(tuple(token_ids[start : start + self._block_size]))
            if child is None:
                break
            path.append(child)
            node = child
        return path

    def acquire(self, path: Sequence[PrefixNode]) -> list[int]:
        """Take a sequence's references to the blocks of `path` and mark it used."""
        blocks = [node.block for node in path]
        self._pool.retain(blocks)
        self._touch(path)
        return blocks

    def insert(self, parent: PrefixNode, tokens: tuple[int, ...], block: int) -> PrefixNode:
        """Keep `block`, held by the caller, as the child of `parent`, or return the equal child kept already.

        When the returned node's block differs, the caller has a duplicate and should read the tree's in its place.
        """
        child = parent.children.get(tokens)
        if child is None:
            child = PrefixNode(tokens, block, parent)
            parent.children[tokens] = child
            self._pool.mark_cached(block)
            self._size += 1
            self._push(child)
        self._touch([child])
        return child

    def evict(self, count: int) -> int:
        """Forget up to `count` unread blocks, least recently used leaves first; returns how many were freed."""
        freed, in_use = 0, []
        while freed < count and self._leaves:
            stamp, _, node = heapq.heappop(self._leaves)
            if node.children or node.block < 0:
                continue
            if stamp != node.last_used:
                self._push(node)
            elif self._pool.references(node.block) > 1:
                in_use.append(node)
            else:
                self._remove(node)
                freed += 1
        for node in in_use:
            self._push(node)
        return freed

    def _remove(self, node: PrefixNode) -> None:
        parent = node.parent
        self._pool.drop_cached(node.block)
        self._size -= 1
        if parent is None:
            raise ValueError("the root of the prefix tree cannot be evicted")
        del parent.children[node.tokens]
        node.block = -1
        if parent is not self.root and not parent.children:
            self._push(parent)

    def _touch(self, path: Sequence[PrefixNode]) -> None:
        now = next(self._clock)
        for node in path:
            node.last_used = now

    def _push(self, leaf: PrefixNode) -> None:
        heapq.heappush(self._leaves, (leaf.last_used, next(self._entries), leaf))
