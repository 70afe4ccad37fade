import pytest

from engine.cache.paged_kv import BlockPool, OutOfBlocks
from engine.cache.prefix import PrefixTree

SIZE = 2


def keep(tree: PrefixTree, pool: BlockPool, tokens: list[int]) -> None:
    """Cache `tokens` as a sequence would that computes them and ends."""
    path = tree.match([*tokens, -1])
    held = tree.acquire(path)
    node = path[-1] if path else tree.root
    for start in range(len(path) * SIZE, len(tokens), SIZE):
        held += pool.allocate(1)
        node = tree.insert(node, tuple(tokens[start : start + SIZE]), held[-1])
    pool.release(held)


@pytest.fixture
def pool() -> BlockPool:
    return BlockPool(8)


@pytest.fixture
def tree(pool: BlockPool) -> PrefixTree:
    return PrefixTree(pool, SIZE)


def test_the_longest_full_blocks_match_and_one_token_is_left(tree: PrefixTree, pool: BlockPool) -> None:
    keep(tree, pool, [1, 2, 3, 4])
    assert [len(tree.match(ids)) for ids in ([1, 2, 3, 4, 5], [1, 2, 3, 4], [1, 2, 9, 9, 9], [2, 2, 3])] == [2, 1, 1, 0]


def test_the_least_recently_used_leaf_goes_first(tree: PrefixTree, pool: BlockPool) -> None:
    keep(tree, pool, [1, 1, 2, 2])
    keep(tree, pool, [1, 1, 3, 3])
    keep(tree, pool, [5, 5])
    tree.acquire(path := tree.match([1, 1, 2, 2, 0]))
    pool.release([node.block for node in path])
    assert tree.evict(1) == 1
    assert [len(tree.match([*ids, 0])) for ids in ([1, 1, 2, 2], [1, 1, 3, 3], [5, 5])] == [2, 1, 1]
    assert tree.evict(1) == 1
    assert [len(tree.match([*ids, 0])) for ids in ([1, 1, 2, 2], [5, 5])] == [2, 0]
    assert tree.evict(9) == 2
    assert (len(tree), pool.free) == (0, 8)


def test_what_a_sequence_reads_is_not_evicted(tree: PrefixTree, pool: BlockPool) -> None:
    keep(tree, pool, [1, 1, 2, 2])
    held = tree.acquire(tree.match([1, 1, 0]))
    assert pool.evictable == 1
    assert tree.evict(9) == 1
    assert len(tree.match([1, 1, 2, 2, 0])) == 1
    pool.release(held)
    assert (tree.evict(9), pool.free) == (1, 8)


def test_the_pool_refuses_more_than_it_has_and_releases_of_free_blocks(pool: BlockPool) -> None:
    held = pool.allocate(6)
    with pytest.raises(OutOfBlocks, match="3 KV blocks wanted, 2 of 8 free"):
        pool.allocate(3)
    assert pool.free == 2
    pool.release(held)
    with pytest.raises(ValueError, match="released more often"):
        pool.release(held[:1])
    with pytest.raises(ValueError, match="cannot be retained"):
        pool.retain(held[:1])


def test_the_lowest_free_block_comes_first(pool: BlockPool) -> None:
    pool.release(pool.allocate(5)[1:3])
    assert pool.allocate(4) == [1, 2, 5, 6]
