"""The scheduler and its memory under random arrivals, aborts, preemptions, pins and ends of conversations.

The model is a fake that writes, for every token, a fingerprint of all tokens so far into its block and its state slot,
and finds there at every step what it must have written before: nobody reads another's blocks or state.
"""

import itertools
from collections import Counter
from collections.abc import Iterator
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.cache.delta_state import DeltaState, SlotPool
from engine.cache.paged_kv import BlockPool
from engine.cache.prefix import PrefixNode, PrefixTree
from engine.cache.snapshots import SnapshotStore
from engine.cache.swap import SwapSpace
from engine.cache.tensors import LayerKV
from engine.config import ModelConfig
from engine.core.memory import Memory
from engine.core.request import Request, SamplingParams
from engine.core.scheduler import Scheduler
from engine.core.sequence import Chunk, SequenceState

BLOCK, GRID, BUDGET, RUNNING = 4, 8, 12, 4
KINDS = ["attention", "hybrid", "attention in tiles", "hybrid in tiles", "hybrid without reuse"]
STATE = ModelConfig(
    "qwen3_next", 4, 4, 4, 1, ("linear_attention",), 1, 1, 1, 1, 1.0, 1e-6, 100, tie_word_embeddings=False,
    linear_num_key_heads=1, linear_num_value_heads=1, linear_key_head_dim=1, linear_value_head_dim=1,
    linear_conv_kernel=2,
)  # fmt: skip


def fingerprint(tokens: list[int]) -> float:
    """A number that float32 holds exactly."""
    return float(hash(tuple(tokens)) % 2**23 + 1)


class World:
    """A scheduler whose model always answers with the next of a few tokens."""

    def __init__(
        self, num_blocks: int, kind: str = "attention", snapshots: tuple[int, int] = (4, 2), swap_bytes: int = 0
    ) -> None:
        tile = GRID if "tiles" in kind else None
        self.pool = BlockPool(num_blocks)
        kv = LayerKV(torch.zeros(num_blocks, BLOCK, 1, 1), torch.zeros(num_blocks, BLOCK, 1, 1))
        self.written = kv.keys[:, :, 0, 0]
        self.state = DeltaState(STATE, RUNNING, torch.float32, torch.float32, torch.device("cpu"))
        hybrid = kind.startswith("hybrid")
        each = self.state.nbytes // self.state.slots
        self.store = SnapshotStore(self.state, snapshots[0] * each, snapshots[1] * each) if hybrid else None
        self.capacities = snapshots
        self.slots = SlotPool(self.state) if hybrid else None
        self.tree = None
        if "without reuse" not in kind:
            self.tree = PrefixTree(self.pool, BLOCK, GRID if tile or hybrid else None, self.store)
        self.swap = SwapSpace({0: kv}, self.state if hybrid else None, swap_bytes, 1 << 20)
        self.memory = Memory(self.pool, self.tree, self.slots, self.swap, block_size=BLOCK, tile=tile)
        self.scheduler = Scheduler(self.memory, max_running=RUNNING, max_step_tokens=BUDGET)
        self.arrivals: list[SequenceState] = []
        self.done: set[str] = set()

    @property
    def capacity(self) -> int:
        return self.pool.num_blocks * BLOCK

    @property
    def live(self) -> list[SequenceState]:
        return [s for s in self.arrivals if s.request.request_id not in self.done]

    def arrive(self, prompt: list[int], completion: int, session: str | None = None) -> None:
        prompt = prompt[: self.capacity - completion]
        request = Request(str(len(self.arrivals)), tuple(prompt), SamplingParams(max_tokens=completion), session)
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
        assert sequence.slot is None

    def end_session(self, session: str) -> None:
        """As the engine does: when no request of it is left."""
        if session not in {s.request.session_id for s in self.live}:
            self.memory.end_session(session)
            assert all(session not in node.holders for node in self.nodes())

    def pin(self, index: int) -> None:
        if self.arrivals:
            self.memory.pin(self.arrivals[index % len(self.arrivals)].token_ids)

    def unpin(self) -> None:
        self.memory.unpin()

    def step(self) -> None:
        chunks = self.scheduler.schedule()
        assert bool(chunks) == bool(self.live)
        assert sum(chunk.tokens for chunk in chunks) <= BUDGET
        assert len({id(chunk.sequence) for chunk in chunks}) == len(chunks)
        for chunk in chunks:
            self.compute(chunk)
        ended = [chunk.sequence for chunk in chunks if chunk.reaches_end]
        for chunk in chunks:
            self.scheduler.commit(chunk)
        for sequence in ended:
            sequence.token_ids.append(len(sequence.token_ids) % 3)
            if sequence.generated == sequence.request.params.max_tokens:
                self.end(sequence)

    def compute(self, chunk: Chunk) -> None:
        sequence, stop = chunk.sequence, chunk.start + chunk.tokens
        assert chunk.tokens >= 1
        assert len(sequence.blocks) * BLOCK >= stop
        prints = [fingerprint(sequence.token_ids[: at + 1]) for at in range(stop)]
        places = [(sequence.blocks[at // BLOCK], at % BLOCK) for at in range(stop)]
        assert [self.written[place].item() for place in places[: chunk.start]] == prints[: chunk.start]
        for at in range(chunk.start, stop):
            self.written[places[at]] = prints[at]
        if sequence.slot is not None:
            state = self.state.recurrent[0, sequence.slot]
            assert state.item() == (prints[chunk.start - 1] if chunk.start else 0)
            state[:] = prints[-1]

    def nodes(self) -> list[PrefixNode]:
        return list(below(self.tree.root)) if self.tree else []

    def check(self) -> None:
        self.check_blocks()
        self.check_states()
        assert len(self.scheduler.running) <= RUNNING
        order = [int(s.request.request_id) for s in [*self.scheduler.running, *self.scheduler.waiting]]
        assert order == sorted(order), "a later arrival overtook an earlier one"
        for sequence in self.scheduler.waiting:
            assert not sequence.blocks
            assert sequence.computed == 0

        assert self.swap.used == sum(s.image.nbytes for s in self.live if s.image)

    def check_blocks(self) -> None:
        pinned = list(itertools.chain(*self.tree._pinned.values())) if self.tree else []
        held = Counter(block for sequence in self.live for block in sequence.blocks) + Counter(n.block for n in pinned)
        kept = Counter(node.block for node in self.nodes())
        assert max(kept.values(), default=1) == 1
        for block in range(self.pool.num_blocks):
            assert self.pool.references(block) == held[block] + kept[block]
        assert self.pool.evictable == len(kept.keys() - held.keys())
        assert self.pool.free == self.pool.num_blocks - len(held.keys() | kept.keys())
        assert len(self.tree or ()) == len(kept)

    def check_states(self) -> None:
        if self.store is None or self.slots is None:
            return
        slots = [sequence.slot for sequence in self.scheduler.running]
        assert None not in slots
        assert self.slots.held == len(set(slots)) == len(slots)
        kept = [node for node in self.nodes() if node.snapshot is not None]
        assert len(self.store) == len(kept)
        assert all(
            self.store.count(tier) <= most for tier, most in zip(("device", "host"), self.capacities, strict=True)
        )
        for node in kept:
            assert node.snapshot is not None
            assert node.depth * BLOCK % GRID == 0
            assert node.snapshot.state.recurrent.item() == fingerprint(spelled(node))
        for node in self.nodes():
            assert node.children or node.snapshot or self.pool.references(node.block) > 1, "a leaf of no use is kept"


def below(node: PrefixNode) -> Iterator[PrefixNode]:
    for child in node.children.values():
        yield child
        yield from below(child)


def spelled(node: PrefixNode) -> list[int]:
    """All tokens up to the end of a node."""
    return [*(spelled(node.parent) if node.parent else []), *node.key[:BLOCK]]


ARRIVAL = st.tuples(
    st.just("arrive"),
    st.lists(st.integers(0, 1), min_size=1, max_size=30) | st.sampled_from([[0] * 20, [0, 1] * 15, [0] * 16 + [1] * 9]),
    st.integers(1, 20),
    st.sampled_from([None, "a", "b", "c"]),
)
EVENT = st.one_of(
    ARRIVAL,
    ARRIVAL,
    st.tuples(st.just("abort"), st.integers(0, 50)),
    st.tuples(st.just("end_session"), st.sampled_from(["a", "b", "c"])),
    st.tuples(st.just("pin"), st.integers(0, 50)),
    st.tuples(st.just("unpin")),
    *[st.tuples(st.just("step"))] * 3,
)


@settings(max_examples=250, deadline=None)
@given(
    st.lists(EVENT, max_size=60),
    st.integers(7, 20),
    st.sampled_from(KINDS),
    st.sampled_from([(4, 2), (1, 0), (2, 1)]),
    st.sampled_from([0, 150, 10_000]),
)
def test_invariants_hold_and_everyone_finishes(
    events: list[tuple], num_blocks: int, kind: str, snapshots: tuple[int, int], swap_bytes: int
) -> None:
    world = World(num_blocks, kind, snapshots, swap_bytes)
    for name, *arguments in events:
        getattr(world, name)(*arguments)
        world.check()
    work = sum(len(s.token_ids) + s.request.params.max_tokens for s in world.live)
    for _ in range(20 * (work + 1)):
        if not world.live:
            break
        world.step()
        world.check()
    assert not world.live, "a request starved"
    world.unpin()
    assert (world.pool.held, world.swap.used) == (0, 0)
    for session in ("a", "b", "c"):
        world.end_session(session)
        world.check()
    assert all(node.holders == {None} for node in world.nodes()), "an ended conversation left something behind"


@pytest.mark.parametrize("kind", KINDS)
def test_thousands_of_requests_leave_nothing_behind(kind: str) -> None:
    rng, world = Random(1), World(30, kind, (6, 4), 500)
    for _ in range(1500):
        stem = [rng.choice([0, 1])] * rng.randrange(24)
        world.arrive(
            stem + [rng.randrange(3) for _ in range(rng.randrange(1, 20))], rng.randrange(1, 16), rng.choice("abc")
        )
        for _ in range(rng.randrange(4)):
            world.step()
        if rng.random() < 0.2:
            world.abort(rng.randrange(9))
        if rng.random() < 0.1:
            world.end_session(rng.choice("abc"))
        if len(world.arrivals) % 20 == 0:
            world.check()
    while world.live:
        world.step()
    for session in "abc":
        world.end_session(session)
    world.check()
    assert (len(world.nodes()), world.pool.free, world.swap.used) == (0, 30, 0)
    assert world.scheduler.preemptions > 0
    assert world.memory.swapped_tokens > 0


@pytest.mark.parametrize("swap_bytes", [0, 1000])
@pytest.mark.parametrize("kind", KINDS)
def test_preemption_happens_and_both_finish(kind: str, swap_bytes: int) -> None:
    """Two sequences that outgrow the pool together: the later yields."""
    world = World(6, kind, swap_bytes=swap_bytes)
    world.arrive([0] * 8 + [1], 10)
    world.arrive([1] * 5, 12)
    while world.live:
        world.step()
        world.check()
    assert world.scheduler.preemptions > 0
    assert bool(world.memory.swapped_tokens) == bool(swap_bytes)
    assert not (swap_bytes and world.memory.recomputed_tokens)


@pytest.mark.parametrize("free", [1, 2])
def test_all_grow_or_none_does(free: int) -> None:
    """Two sequences at the ends of their blocks, in a pool that has one block more or two."""
    world = World(2 + free, "hybrid without reuse")
    for _ in range(2):
        world.arrive([0] * BLOCK, 1)
        world.scheduler.schedule()
    running = world.scheduler.running
    for sequence in running:
        sequence.computed = BLOCK
    assert world.memory.grow_all(running) is (free == 2)
    assert [len(sequence.blocks) for sequence in running] == [free, free]


def test_a_shared_prompt_is_held_once() -> None:
    world = World(16)
    world.arrive([0, 1] * 5, 8)
    world.step()
    world.arrive([0, 1] * 5, 8)
    world.step()
    first, second = world.arrivals
    assert second.cached_tokens == 8
    assert first.blocks[:2] == second.blocks[:2]


def test_a_pinned_prefix_outlives_pressure_but_not_a_request_that_needs_its_blocks() -> None:
    world = World(10, "hybrid", (1, 0))
    world.arrive([0] * 17, 1)
    world.step()
    world.step()
    world.pin(0)
    world.arrive([1] * 17, 1)
    while world.live:
        world.step()
        world.check()
    assert len(world.tree.match([0] * 17)) == 4
    world.arrive([1] * 38, 1)
    while world.live:
        world.step()
        world.check()
    assert world.tree.match([0] * 17) == []


@pytest.mark.parametrize("budget", [1, 5])
def test_a_long_prompt_does_not_stop_running_decodes(budget: int) -> None:
    world = World(64, "hybrid without reuse")
    world.arrive([0, 1], 12)
    world.step()
    world.arrive([1] * 40, budget)
    for _ in range(3):
        before = world.arrivals[0].generated
        world.step()
        assert world.arrivals[0].generated == before + 1
