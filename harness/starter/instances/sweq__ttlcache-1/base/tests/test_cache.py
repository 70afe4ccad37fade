import pytest

from ttlcache import TTLCache, cached


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_stores_and_returns(clock):
    cache = TTLCache(2, 10.0, clock)
    cache["a"] = 1
    assert cache["a"] == 1
    assert "a" in cache
    assert len(cache) == 1


def test_missing_key_raises(clock):
    with pytest.raises(KeyError):
        TTLCache(2, 10.0, clock)["a"]


def test_entry_expires(clock):
    cache = TTLCache(2, 10.0, clock)
    cache["a"] = 1
    clock.now = 9.9
    assert cache.get("a") == 1
    clock.now = 10.0
    assert cache.get("a") is None
    assert len(cache) == 0


def test_oldest_entry_leaves_when_full(clock):
    cache = TTLCache(2, 10.0, clock)
    cache["a"] = 1
    cache["b"] = 2
    cache["c"] = 3
    assert list(cache) == ["b", "c"]
    assert cache.stats.evictions == 1


def test_writing_again_counts_as_use(clock):
    cache = TTLCache(2, 10.0, clock)
    cache["a"] = 1
    cache["b"] = 2
    cache["a"] = 3
    cache["c"] = 4
    assert list(cache) == ["a", "c"]


def test_expired_entries_make_room_first(clock):
    cache = TTLCache(2, 10.0, clock)
    cache["a"] = 1
    clock.now = 5.0
    cache["b"] = 2
    clock.now = 12.0
    cache["c"] = 3
    assert list(cache) == ["b", "c"]
    assert cache.stats.evictions == 0


def test_counters(clock):
    cache = TTLCache(2, 10.0, clock)
    cache["a"] = 1
    cache.get("a")
    cache.get("b")
    assert (cache.stats.hits, cache.stats.misses) == (1, 1)


def test_cached_function_runs_once(clock):
    calls = []

    @cached(TTLCache(8, 10.0, clock))
    def double(value):
        calls.append(value)
        return 2 * value

    assert [double(2), double(2), double(3)] == [4, 4, 6]
    assert calls == [2, 3]
