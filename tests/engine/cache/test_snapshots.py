"""Snapshots under two budgets, and what the prefix tree makes of them, of pins and of conversations that end."""

import pytest
import torch

from engine.cache.delta_state import DeltaState
from engine.cache.paged_kv import BlockPool
from engine.cache.prefix import PrefixTree
from engine.cache.snapshots import SNAPSHOTS_EACH, SnapshotStore, plan_snapshots
from engine.config import EngineConfig
from engine.errors import UserError
from engine.weights.synthetic import SHAPES

SIZE, CPU, F32 = 2, torch.device("cpu"), torch.float32
TINY = SHAPES["tiny"]


@pytest.fixture
def state() -> DeltaState:
    return DeltaState(TINY, 2, F32, F32, CPU)


def store_of(state: DeltaState, device: int, host: int) -> SnapshotStore:
    each = state.nbytes // state.slots
    return SnapshotStore(state, device * each, host * each)


def test_the_least_recently_used_moves_to_the_host_and_then_out_and_comes_back_when_used(state: DeltaState) -> None:
    store, lost, snapshots = store_of(state, 2, 1), [], []
    for number in range(4):
        state.recurrent[:, 0] = number
        state.window[:, 0] = -number
        snapshots.append(store.save(0, lambda number=number: lost.append(number)))
        if number == 1:
            assert store.load(snapshots[0], 1) == "device"
    assert (store.count("device"), store.count("host"), lost) == (2, 1, [1])
    assert store.load(snapshots[0], 1) == "host"
    assert (state.recurrent[:, 1].unique().tolist(), state.window[:, 1].unique().tolist()) == ([0.0], [0.0])
    assert [store.load(snapshots[number], 1) for number in (0, 3, 2)] == ["device", "device", "host"]
    assert (state.recurrent[:, 1].unique().tolist(), state.window[:, 1].unique().tolist()) == ([2.0], [-2.0])
    assert (store.count("device"), store.count("host"), lost) == (2, 1, [1])


def test_a_full_store_of_pinned_snapshots_takes_no_more(state: DeltaState) -> None:
    store = store_of(state, 1, 0)
    first = store.save(0, pytest.fail)
    first.pinned = True
    assert store.save(0, pytest.fail) is None
    store.drop(first)
    assert store.save(0, pytest.fail) is not None


def test_budgets_default_to_shares_of_memory_and_are_one_on_cpu() -> None:
    each = DeltaState(TINY, 1, F32, F32, CPU).nbytes
    plan = lambda free=1 << 40, **limits: plan_snapshots(TINY, EngineConfig(max_running=2, **limits), F32, free)  # noqa: E731
    assert plan() == (2 * SNAPSHOTS_EACH * each, 0)
    assert plan(free=16 * each) == (2 * each, 0)
    assert plan(state_cache_bytes=3 * each, host_state_cache_bytes=each) == (4 * each, 0)
    assert plan(state_cache_bytes=3 * each, host_state_cache_bytes=each, device="cuda") == (3 * each, each)
    assert plan(prefix_cache=False) == plan_snapshots(SHAPES["llama-tiny"], EngineConfig(), F32, 1 << 40) == (0, 0)
    with pytest.raises(UserError, match=f"state_cache_bytes 5 holds no DeltaNet snapshot of {each} bytes"):
        plan(state_cache_bytes=5)


def keep(tree: PrefixTree, pool: BlockPool, tokens: list[int], session: str | None = None, at: int = 0) -> None:
    """Cache `tokens` as a sequence would that computes them, with a snapshot after `at` tokens if not 0."""
    path = tree.walk([*tokens, -1])
    held = tree.acquire(path, session)
    node = path[-1] if path else tree.root
    for start in range(len(path) * SIZE, len(tokens), SIZE):
        held += pool.allocate(1)
        node = tree.insert(node, tree.key(tokens, start), held[-1], session)
        if start + SIZE == at:
            assert tree.save_state(node, 0)
    pool.release(held)
    tree.leave(node)


@pytest.fixture
def pool() -> BlockPool:
    return BlockPool(16)


def test_a_hybrid_prefix_ends_at_a_snapshot(pool: BlockPool, state: DeltaState) -> None:
    tree = PrefixTree(pool, SIZE, 4, store_of(state, 2, 0))
    keep(tree, pool, [1, 1, 2, 2, 3, 3, 4, 4, 5, 5], at=4)
    assert len(tree.match([1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 9])) == 2
    assert tree.match([1, 1, 2, 2]) == []
    assert len(tree) == 2, "blocks below the last snapshot are given back"


def test_a_lost_snapshot_takes_its_blocks_along(pool: BlockPool, state: DeltaState) -> None:
    tree = PrefixTree(pool, SIZE, 4, store_of(state, 1, 0))
    keep(tree, pool, [1, 1, 2, 2], at=4)
    keep(tree, pool, [1, 1, 3, 3], at=4)
    assert (len(tree), len(tree.match([1, 1, 2, 2, 9])), len(tree.match([1, 1, 3, 3, 9]))) == (2, 0, 2)


@pytest.mark.parametrize("hybrid", [False, True])
def test_an_ended_conversation_leaves_exactly_what_others_use(pool: BlockPool, state: DeltaState, hybrid: bool) -> None:
    store = store_of(state, 4, 0) if hybrid else None
    tree = PrefixTree(pool, SIZE, SIZE, store)
    at = 4 if hybrid else 0
    keep(tree, pool, [1, 1], None, 2 if hybrid else 0)
    keep(tree, pool, [1, 1, 2, 2], "a", at)
    keep(tree, pool, [1, 1, 3, 3], "b", at)
    keep(tree, pool, [7, 7, 8, 8], "a", at)
    assert tree.end_session("a") == 3
    assert [len(tree.match([*ids, 9])) for ids in ([1, 1, 2, 2], [1, 1, 3, 3], [7, 7])] == [1, 2, 0]
    assert tree.end_session("a") == tree.end_session("unknown") == 0
    assert tree.end_session("b") == 1
    assert (len(tree), pool.free) == (1, 15)


def test_a_pinned_prefix_is_kept_until_unpinned(pool: BlockPool, state: DeltaState) -> None:
    tree = PrefixTree(pool, SIZE, SIZE, store_of(state, 1, 0))
    keep(tree, pool, [1, 1, 2, 2], "a", 4)
    assert tree.pin([1, 1, 2, 2]) == 4
    assert tree.pin([5, 5]) == 0
    assert (tree.evict(9), tree.end_session("a"), len(tree)) == (0, 0, 2)
    keep(tree, pool, [6, 6], "b")
    assert tree.unpin_all()
    assert not tree.unpin_all()
    assert (len(tree), pool.free) == (0, 16), "nobody holds it any more"


def test_a_thousand_blocks_are_given_back_without_recursion(state: DeltaState) -> None:
    pool = BlockPool(3001)
    tree = PrefixTree(pool, SIZE, SIZE, store_of(state, 1, 0))
    keep(tree, pool, [1] * 6000, "a", 6000)
    keep(tree, pool, [2, 2], "b", 2)
    assert len(tree) == 1
