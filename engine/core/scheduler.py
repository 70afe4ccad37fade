"""Who runs in the next step.

Policy. First come, first served: requests wait in arrival order and the first is never overtaken. Admission takes all
blocks that the known tokens need at once, so that a prefill never stalls half-way and blocks are never promised twice.
A step is one token of every decoding sequence and, with what is left of `max_step_tokens`, chunks of prefills in order.
When a decode needs a block and none can be had, the latest arrival gives its blocks up and waits again at the front;
what it had computed is copied to the host, or computed again later unless the prefix tree still has it. The earliest
can therefore always go on: nobody starves.
A model with DeltaNet layers gives each running sequence a state slot beside its blocks, from admission until it ends or
is preempted. Pinned prefixes yield when the first in the queue could not be served otherwise.
"""

from collections import deque
from collections.abc import Sequence

from engine.core.memory import Memory
from engine.core.sequence import Chunk, SequenceState


class Scheduler:
    """Queues of sequences over one memory.

    Callers admit only sequences that fit the pool alone, and a `max_step_tokens` that holds one token of every running
    sequence and, beside them, a tile if there are tiles.
    """

    def __init__(self, memory: Memory, *, max_running: int, max_step_tokens: int) -> None:
        self.waiting: deque[SequenceState] = deque()
        self.running: list[SequenceState] = []
        self.preemptions = 0
        self._memory = memory
        self._max_running, self._max_step_tokens = max_running, max_step_tokens

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

    def foresee(self, running: Sequence[SequenceState]) -> list[SequenceState]:
        """The sequences of the step after one that decodes `running`, with room made for a token more of each.

        The one before is committed, but the tokens that it chooses are not known yet. Empty where the next step may
        have more to do than that: an admission, a preemption, or a prefill of one that is not among `running`.
        """
        last = [sequence.generated + 1 >= sequence.request.params.max_tokens for sequence in running]
        going_on = [sequence for sequence, ends in zip(running, last, strict=True) if not ends]
        admits = self.waiting and len(going_on) < self._max_running
        if admits or len(running) != len(self.running) or not self._memory.grow_all(going_on):
            return []
        return going_on

    def commit(self, chunk: Chunk) -> None:
        """The chunk is computed."""
        self._memory.commit(chunk)

    def remove(self, sequence: SequenceState) -> None:
        """Forget a finished, failed or aborted sequence and take back what it holds at once."""
        if sequence in self.running:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)
        self._memory.release(sequence)

    def _decodes(self) -> list[Chunk]:
        chunks = []
        for sequence in [s for s in self.running if s.pending == 1]:
            if sequence in self.running and self._grow(sequence):
                chunks.append(Chunk(sequence, 1))
        return chunks

    def _prefills(self, budget: int) -> list[Chunk]:
        chunks = []
        for sequence in self.running:
            count = self._memory.next_tokens(sequence, budget) if sequence.pending > 1 and budget > 0 else 0
            if count:
                chunks.append(Chunk(sequence, count))
                budget -= count
        return chunks

    def _admit(self, budget: int) -> list[Chunk]:
        """Start waiting sequences in order while there is room, and compute what `budget` allows of each."""
        chunks = []
        while self.waiting and len(self.running) < self._max_running and budget > 0:
            # One block for each running sequence is left, or the newcomer would be preempted as soon as they grow.
            if not self._memory.place(self.waiting[0], spare=len(self.running)):
                if self.running or not self._memory.unpin():
                    break
                continue
            sequence = self.waiting.popleft()
            self.running.append(sequence)
            count = self._memory.next_tokens(sequence, budget)
            if not count:
                break
            chunks.append(Chunk(sequence, count))
            budget -= count
        return chunks

    def _grow(self, sequence: SequenceState) -> bool:
        """Make room for one more token, at the expense of later arrivals; False when it had to yield itself."""
        while not self._memory.grow(sequence):
            if len(self.running) == 1 and self._memory.unpin():
                continue
            victim = self.running[-1]
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _preempt(self, victim: SequenceState) -> None:
        self.preemptions += 1
        self.running.remove(victim)
        self._memory.preempt(victim)
        self.waiting.appendleft(victim)
