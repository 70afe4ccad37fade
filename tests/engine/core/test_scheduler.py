"""The scheduler under random arrivals, aborts and preemptions: nobody starves, no block is lost."""

from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.cache.paged_kv import BlockPool
from engine.cache.prefix import PrefixNode, PrefixTree
from engine.core.memory import Memory
from engine.core.request import Request, SamplingParams
from engine.core.scheduler import Scheduler
from engine.core.sequence import SequenceState

BLOCK, BUDGET, RUNNING = 4, 12, 4


class World:
    """A scheduler whose model always answers with the next of a few tokens."""

    def __init__(self, num_blocks: int, prefix: bool) -> None:
        self.pool = BlockPool(num_blocks)
        self.tree = PrefixTree(self.pool, BLOCK) if prefix else None
        memory = Memory(self.pool, self.tree, block_size=BLOCK)
        self.scheduler = Scheduler(memory, max_running=RUNNING, max_step_tokens=BUDGET)
        self.arrivals: list[SequenceState] = []
        self.lengths: dict[str, int] = {}
        self.done: set[str] = set()

    @property
    def capacity(self) -> int:
        return self.pool.num_blocks * BLOCK

    @property
    def live(self) -> list[SequenceState]:
        return [s for s in self.arrivals if s.request.request_id not in self.done]

    def arrive(self, prompt: list[int], completion: int) -> None:
        prompt = prompt[: self.capacity - completion]
        request = Request(str(len(self.arrivals)), tuple(prompt), SamplingParams(max_tokens=completion))
        sequence = SequenceState(request, list(prompt), Random(0), text=None)  # type: ignore[arg-type]
        self.arrivals.append(sequence)
        self.scheduler.add(sequence)

    def abort(self, index: int) -> None:
        if self.live:
            self.end(self.live[index % len(self.live)])

    def end(self, sequence: SequenceState) -> None:
        self.done.add(sequence.request.request_id)
        self.scheduler.remove(sequence)
        assert sequence.blocks == []

    def step(self) -> None:
        chunks = self.scheduler.schedule()
        assert bool(chunks) == bool(self.live)
        assert sum(chunk.tokens for chunk in chunks) <= BUDGET
        assert len({id(chunk.sequence) for chunk in chunks}) == len(chunks)
        for chunk in chunks:
            assert chunk.tokens >= 1
            assert len(chunk.sequence.blocks) * BLOCK >= chunk.start + chunk.tokens
        ended = [chunk.sequence for chunk in chunks if chunk.reaches_end]
        for chunk in chunks:
            self.scheduler.commit(chunk)
        for sequence in ended:
            sequence.token_ids.append(len(sequence.token_ids) % 3)
            if sequence.generated == sequence.request.params.max_tokens:
                self.end(sequence)

    def check(self) -> None:
        held = Counter(block for sequence in self.live for block in sequence.blocks)
        kept = Counter(node.block for node in nodes(self.tree.root)) if self.tree else Counter()
        assert max(kept.values(), default=1) == 1
        for block in range(self.pool.num_blocks):
            assert self.pool.references(block) == held[block] + kept[block]
        assert self.pool.evictable == len(kept.keys() - held.keys())
        assert self.pool.free == self.pool.num_blocks - len(held.keys() | kept.keys())
        assert len(self.tree or ()) == len(kept)
        assert len(self.scheduler.running) <= RUNNING
        order = [int(s.request.request_id) for s in [*self.scheduler.running, *self.scheduler.waiting]]
        assert order == sorted(order), "a later arrival overtook an earlier one"
        for sequence in self.scheduler.waiting:
            assert not sequence.blocks
            assert sequence.computed == 0


def nodes(node: PrefixNode) -> list[PrefixNode]:
    return [found for child in node.children.values() for found in [child, *nodes(child)]]


ARRIVAL = st.tuples(st.just("arrive"), st.lists(st.integers(0, 1), min_size=1, max_size=30), st.integers(1, 12))
EVENT = st.one_of(
    ARRIVAL,
    ARRIVAL,
    st.tuples(st.just("abort"), st.integers(0, 50)),
    st.tuples(st.just("step")),
    st.tuples(st.just("step")),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(EVENT, max_size=60), st.integers(6, 16), st.booleans())
def test_invariants_hold_and_everyone_finishes(events: list[tuple], num_blocks: int, prefix: bool) -> None:
    world = World(num_blocks, prefix)
    for kind, *arguments in events:
        getattr(world, kind)(*arguments)
        world.check()
    work = sum(len(s.token_ids) + s.request.params.max_tokens for s in world.live)
    for _ in range(20 * (work + 1)):
        if not world.live:
            break
        world.step()
        world.check()
    assert not world.live, "a request starved"
    assert world.pool.held == 0


def test_preemption_happens_and_recomputes_from_the_prefix_tree() -> None:
    """Two sequences that outgrow the pool together: the later yields, and both finish."""
    world = World(6, prefix=True)
    world.arrive([0] * 8 + [1], 10)
    world.arrive([1] * 5, 12)
    while world.live:
        world.step()
        world.check()
    assert world.scheduler.preemptions > 0


def test_a_shared_prompt_is_held_once() -> None:
    world = World(16, prefix=True)
    world.arrive([0, 1] * 5, 8)
    world.step()
    world.arrive([0, 1] * 5, 8)
    world.step()
    first, second = world.arrivals
    assert second.cached_tokens == 8
    assert first.blocks[:2] == second.blocks[:2]


@pytest.mark.parametrize("budget", [1, 5])
def test_a_long_prompt_does_not_stop_running_decodes(budget: int) -> None:
    world = World(64, prefix=False)
    world.arrive([0, 1], 12)
    world.step()
    world.arrive([1] * 40, budget)
    for _ in range(3):
        before = world.arrivals[0].generated
        world.step()
        assert world.arrivals[0].generated == before + 1
