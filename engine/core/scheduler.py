"""Who runs in the next step, and the only one who asks the cache for blocks.

Policy. First come, first served: requests wait in arrival order and the first is never overtaken. Admission takes all
blocks that the known tokens need at once, so that a prefill never stalls half-way and blocks are never promised twice.
A step is one token of every decoding sequence and, with what is left of `max_step_tokens`, chunks of prefills in order.
When a decode needs a block and none can be had, the latest arrival gives its blocks up and waits again at the front;
its tokens are recomputed later (mostly from the prefix tree). The earliest can therefore always go on: nobody starves.
A model with DeltaNet layers gives each running sequence a state slot beside its blocks, from admission until it ends or
is preempted. There are as many as sequences may run, so that waiting is always for blocks, and one more to borrow.
"""

from collections import deque

from engine.cache.delta_state import SlotPool
from engine.cache.paged_kv import BlockPool
from engine.cache.prefix import PrefixTree
from engine.core.sequence import Chunk, SequenceState


class Scheduler:
    """Queues of sequences over one block pool; `prefix` None switches prefix reuse off, `slots` is for DeltaNet models.

    Callers admit only sequences that fit the pool alone, and a `max_step_tokens` of at least `max_running`.
    """

    def __init__(
        self,
        pool: BlockPool,
        prefix: PrefixTree | None,
        slots: SlotPool | None = None,
        *,
        block_size: int,
        max_running: int,
        max_step_tokens: int,
    ) -> None:
        self.waiting: deque[SequenceState] = deque()
        self.running: list[SequenceState] = []
        self.preemptions = 0
        self.prompt_tokens = 0
        self._pool, self._prefix, self._slots = pool, prefix, slots
        self._block_size, self._max_running, self._max_step_tokens = block_size, max_running, max_step_tokens

    def add(self, sequence: SequenceState) -> None:
        self.waiting.append(sequence)

    def schedule(self) -> list[Chunk]:
        """The chunks of the next step, at most one per sequence; empty only when nothing waits or runs."""
        preempted = self.preemptions
        chunks = self._decodes()
        chunks += self._prefills(self._max_step_tokens - len(chunks))
        if self.preemptions == preempted:
            chunks += self._admit(self._max_step_tokens - sum(chunk.tokens for chunk in chunks))
        return chunks

    def commit(self, chunk: Chunk) -> None:
        """The chunk's keys and values are in the cache: offer blocks that are now full to the prefix tree."""
        sequence = chunk.sequence
        sequence.computed += chunk.tokens
        if self._prefix is not None:
            self._share_full_blocks(sequence, self._prefix)

    def remove(self, sequence: SequenceState) -> None:
        """Forget a finished, failed or aborted sequence and give its blocks back at once."""
        if sequence in self.running:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)
        self._release(sequence)

    def borrow(self, sequence: SequenceState) -> bool:
        """Give a sequence outside the queues blocks and a slot until `give_back`, reusing no prefix; False: no room."""
        if not self._take(sequence, self._blocks_for(len(sequence.token_ids))):
            return False
        self._take_slot(sequence)
        return True

    def give_back(self, sequence: SequenceState) -> None:
        self._release(sequence)

    def _decodes(self) -> list[Chunk]:
        chunks = []
        for sequence in [s for s in self.running if s.pending == 1]:
            if sequence in self.running and self._grow(sequence):
                chunks.append(Chunk(sequence, 1))
        return chunks

    def _prefills(self, budget: int) -> list[Chunk]:
        chunks = []
        for sequence in self.running:
            if sequence.pending > 1 and budget > 0:
                chunks.append(Chunk(sequence, min(sequence.pending, budget)))
                budget -= chunks[-1].tokens
        return chunks

    def _admit(self, budget: int) -> list[Chunk]:
        chunks = []
        while self.waiting and len(self.running) < self._max_running and budget > 0:
            if not self._place(self.waiting[0]):
                break
            sequence = self.waiting.popleft()
            self.running.append(sequence)
            chunks.append(Chunk(sequence, min(sequence.pending, budget)))
            budget -= chunks[-1].tokens
        return chunks

    def _place(self, sequence: SequenceState) -> bool:
        """Give a waiting sequence its cached prefix and blocks for all its tokens, or nothing at all.

        One block for each running sequence is left, or the newcomer would be preempted as soon as they grow.
        """
        path = self._prefix.match(sequence.token_ids) if self._prefix is not None else []
        if self._prefix is not None:
            sequence.blocks = self._prefix.acquire(path)
        needed = self._blocks_for(len(sequence.token_ids)) - len(path)
        if not self._take(sequence, needed, spare=len(self.running)):
            self._release(sequence)
            return False
        self._take_slot(sequence)
        sequence.computed = len(path) * self._block_size
        sequence.cached_blocks, sequence.node = len(path), path[-1] if path else None
        if sequence.cached_tokens is None:
            sequence.cached_tokens = sequence.computed
            self.prompt_tokens += sequence.prompt_tokens
            if self._prefix is not None:
                self._prefix.hit_tokens += sequence.computed
        return True

    def _grow(self, sequence: SequenceState) -> bool:
        """Make room for one more token, at the expense of later arrivals; False when it had to yield itself."""
        needed = self._blocks_for(sequence.computed + 1) - len(sequence.blocks)
        while not self._take(sequence, needed):
            victim = self.running[-1]
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _preempt(self, victim: SequenceState) -> None:
        self.preemptions += 1
        self.running.remove(victim)
        self._release(victim)
        self.waiting.appendleft(victim)

    def _take(self, sequence: SequenceState, count: int, spare: int = 0) -> bool:
        """Allocate `count` blocks if `count + spare` could be had, evicting unread prefixes as needed."""
        if count + (spare if count else 0) > self._pool.free + self._pool.evictable:
            return False
        if count > self._pool.free and self._prefix is not None:
            self._prefix.evict(count - self._pool.free)
        sequence.blocks = sequence.blocks + self._pool.allocate(count)
        return True

    def _take_slot(self, sequence: SequenceState) -> None:
        if self._slots is not None:
            sequence.slot = self._slots.allocate()

    def _release(self, sequence: SequenceState) -> None:
        if self._slots is not None and sequence.slot is not None:
            self._slots.release(sequence.slot)
            sequence.slot = None
        self._pool.release(sequence.blocks)
        sequence.blocks, sequence.node = [], None
        sequence.computed = sequence.cached_blocks = 0

    def _share_full_blocks(self, sequence: SequenceState, prefix: PrefixTree) -> None:
        """Keep full blocks in the tree; where it has an equal block already, read that one and free the duplicate."""
        size = self._block_size
        for index in range(sequence.cached_blocks, sequence.computed // size):
            tokens = tuple(sequence.token_ids[index * size : (index + 1) * size])
            own = sequence.blocks[index]
            node = prefix.insert(sequence.node or prefix.root, tokens, own)
            if node.block != own:
                self._pool.retain([node.block])
                self._pool.release([own])
                sequence.blocks[index] = node.block
            sequence.node, sequence.cached_blocks = node, index + 1

    def _blocks_for(self, tokens: int) -> int:
        return -(-tokens // self._block_size)
