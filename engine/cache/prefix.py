"""The prefix tree: which token prefixes are still in memory, and who may be forgotten first.

A node is one full block of tokens below its parent, so a path from the root spells a prefix and lists the blocks that
hold it. The tree owns one reference to each node's block. A sequence that reads a cached prefix takes references of its
own to all blocks of the path; a node no sequence reads and without children may be evicted, least recently used first.
Since readers hold whole paths, everything below an unread node is unread too: all `pool.evictable` blocks can be had.

In a hybrid model a prefix can be used only as far as a node with a snapshot of the recurrent state. Snapshots are owned
by their nodes but forgotten by an order of their own, for a budget of their own. Blocks below the last snapshot of
their path serve nobody; they are given back as soon as no sequence reads them.

Who knows that a prefix will be wanted, or will not, may say so. Nodes note which conversations went through them: when
a conversation is over, what was only its own is forgotten at once. A pinned prefix is read by nobody and yet kept.
"""

import heapq
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

from engine.cache.paged_kv import BlockPool
from engine.cache.snapshots import Snapshot, SnapshotStore, Source


@dataclass(eq=False)
class PrefixNode:
    """One full block: its `key` below its parent, and in `block` its tokens' keys and values; -1 once evicted.

    `holders` are the conversations that went through here; None stands for all requests that named none.
    """

    key: tuple[int, ...]
    block: int
    parent: "PrefixNode | None"
    depth: int = 0
    last_used: int = 0
    snapshot: Snapshot | None = None
    holders: set[str | None] = field(default_factory=set)
    children: dict[tuple[int, ...], "PrefixNode"] = field(default_factory=dict)


class PrefixTree:
    """Longest-prefix lookup over full blocks with LRU eviction.

    A prefix is used up to a multiple of `grid` tokens, itself a multiple of the block size (the default). `snapshots`
    is for hybrid models, which can start only where there is one.
    """

    def __init__(
        self, pool: BlockPool, block_size: int, grid: int | None = None, snapshots: SnapshotStore | None = None
    ) -> None:
        self.root = PrefixNode((), -1, None)
        self.grid = grid or block_size
        self.snapshots = snapshots
        self._pool = pool
        self._block_size = block_size
        self._size = 0
        self._clock = itertools.count(1)
        self._leaves: list[tuple[int, int, PrefixNode]] = []
        self._entries = itertools.count()
        self._sessions: dict[str, set[PrefixNode]] = {}
        self._pinned: dict[tuple[int, ...], list[PrefixNode]] = {}

    def __len__(self) -> int:
        """Blocks kept."""
        return self._size

    def walk(self, token_ids: Sequence[int]) -> list[PrefixNode]:
        """The path of all cached blocks with which `token_ids` begins, but for its last token."""
        path, node = [], self.root
        for start in range(0, len(token_ids) - self._block_size, self._block_size):
            child = node.children.get(self.key(token_ids, start))
            if child is None:
                break
            path.append(child)
            node = child
        return path

    def key(self, token_ids: Sequence[int], start: int) -> tuple[int, ...]:
        """The key of the block that begins at `start`: its tokens or, where a grid unit begins, those of the unit.

        What is computed of a token depends, in its last bits, on what it was computed together with, so a unit is
        shared whole or not at all.
        """
        return tuple(token_ids[start : start + (self._block_size if start % self.grid else self.grid)])

    def usable(self, path: Sequence[PrefixNode]) -> list[PrefixNode]:
        """As much of a path from the root as a sequence may start from."""
        stride = self.grid // self._block_size
        length = len(path) - len(path) % stride
        while self.snapshots is not None and length and path[length - 1].snapshot is None:
            length -= stride
        return list(path[:length])

    def match(self, token_ids: Sequence[int]) -> list[PrefixNode]:
        """The longest usable prefix of `token_ids`, never all of it: one token must be left to compute."""
        return self.usable(self.walk(token_ids))

    def acquire(self, path: Sequence[PrefixNode], session: str | None = None) -> list[int]:
        """Take a sequence's references to the blocks of `path` and mark it used."""
        blocks = [node.block for node in path]
        self._pool.retain(blocks)
        self._touch(path, session)
        return blocks

    def insert(self, parent: PrefixNode, key: tuple[int, ...], block: int, session: str | None = None) -> PrefixNode:
        """Keep `block`, held by the caller, as the child of `parent`, or return the equal child kept already.

        When the returned node's block differs, the caller has a duplicate and should read the tree's in its place.
        """
        child = parent.children.get(key)
        if child is None:
            child = PrefixNode(key, block, parent, parent.depth + 1)
            parent.children[key] = child
            self._pool.mark_cached(block)
            self._size += 1
            self._push(child)
        self._touch([child], session)
        return child

    def save_state(self, node: PrefixNode, slot: int) -> bool:
        """Keep the state in `slot`, after the last token of `node`; False when another was kept there already."""
        if self.snapshots is None or node.snapshot is not None:
            return False
        node.snapshot = self.snapshots.save(slot, partial(self._lose_state, node))
        return node.snapshot is not None

    def load_state(self, node: PrefixNode, slot: int) -> Source:
        """Load the snapshot at `node`; ValueError when there is none."""
        if self.snapshots is None or node.snapshot is None:
            raise ValueError("a state was asked of a node that keeps none")
        return self.snapshots.load(node.snapshot, slot)

    def drop_state(self, node: PrefixNode) -> None:
        """Forget the snapshot at `node`, if it has one that is not pinned."""
        if self.snapshots is not None and node.snapshot is not None and not node.snapshot.pinned:
            self.snapshots.drop(node.snapshot)
            self._lose_state(node)

    def leave(self, node: PrefixNode) -> None:
        """A sequence that read `node` has given its references back: forget what is then of no use."""
        if self._is_useless(node):
            self._remove(node)

    def evict(self, count: int) -> int:
        """Forget at least `count` unread blocks, or all there are, least recently used leaves first; how many."""
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
                freed += self._remove(node)
        for node in in_use:
            self._push(node)
        return freed

    def end_session(self, session: str) -> int:
        """Forget what only this conversation went through; returns how many blocks were freed."""
        nodes = self._sessions.pop(session, set())
        for node in nodes:
            node.holders.discard(session)
        return self._forget_unheld(nodes)

    def pin(self, token_ids: Sequence[int]) -> int:
        """Keep the longest usable prefix of `token_ids` until `unpin_all`; returns its length in tokens."""
        path = self.match([*token_ids, -1])
        if path and tuple(token_ids) not in self._pinned:
            self._pool.retain([node.block for node in path])
            self._pinned[tuple(token_ids)] = path
            self._mark_pinned(path, pinned=True)
        return len(path) * self._block_size

    def unpin_all(self) -> bool:
        """Let all pinned prefixes be evicted like others; False when there were none."""
        paths, self._pinned = list(self._pinned.values()), {}
        for path in paths:
            self._mark_pinned(path, pinned=False)
            self._pool.release([node.block for node in path])
            self.leave(path[-1])
            self._forget_unheld(path)
        return bool(paths)

    def _forget_unheld(self, nodes: Iterable[PrefixNode]) -> int:
        """Forget those of `nodes` that no conversation holds and no sequence reads; returns the blocks freed."""
        # What lies below an unheld node is unheld too: from the deepest on, each is a leaf when its turn comes.
        unheld = sorted((node for node in nodes if not node.holders), key=lambda node: -node.depth)
        return sum(self._remove(node) for node in unheld if self._is_unread_leaf(node))

    def _mark_pinned(self, path: Sequence[PrefixNode], *, pinned: bool) -> None:
        snapshot = path[-1].snapshot
        if snapshot is not None:
            snapshot.pinned = pinned

    def _remove(self, node: PrefixNode) -> int:
        """Forget an unread leaf, and what above it is then of no use; returns how many blocks were freed."""
        freed, leaf = 0, node
        while True:
            parent = self._forget(leaf)
            freed += 1
            if parent is self.root or parent.children:
                return freed
            self._push(parent)
            if not self._is_useless(parent):
                return freed
            leaf = parent

    def _forget(self, leaf: PrefixNode) -> PrefixNode:
        """Take one leaf out of the tree; returns its parent."""
        if leaf.parent is None:
            raise ValueError("the root of the prefix tree cannot be evicted")
        if self.snapshots is not None and leaf.snapshot is not None:
            self.snapshots.drop(leaf.snapshot)
            leaf.snapshot = None
        for session in leaf.holders:
            if session is not None:
                self._sessions[session].discard(leaf)
        self._pool.drop_cached(leaf.block)
        self._size -= 1
        del leaf.parent.children[leaf.key]
        leaf.block = -1
        return leaf.parent

    def _is_unread_leaf(self, node: PrefixNode) -> bool:
        return node.block >= 0 and not node.children and self._pool.references(node.block) == 1

    def _lose_state(self, node: PrefixNode) -> None:
        node.snapshot = None
        self.leave(node)

    def _is_useless(self, node: PrefixNode) -> bool:
        """Whether no text can start from a node or below it, and no sequence reads it."""
        return self.snapshots is not None and node.snapshot is None and self._is_unread_leaf(node)

    def _touch(self, path: Iterable[PrefixNode], session: str | None) -> None:
        now = next(self._clock)
        for node in path:
            node.last_used = now
            if session not in node.holders:
                node.holders.add(session)
                if session is not None:
                    self._sessions.setdefault(session, set()).add(node)

    def _push(self, leaf: PrefixNode) -> None:
        heapq.heappush(self._leaves, (leaf.last_used, next(self._entries), leaf))
