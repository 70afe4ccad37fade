"""The cache itself."""

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass
class Entry:
    """One stored value and the moment at which it stops being valid."""

    value: Any
    expires: float


@dataclass
class Stats:
    """Counters since the cache was made."""

    hits: int = 0
    misses: int = 0
    evictions: int = 0


class TTLCache:
    """Mapping with at most `maxsize` entries, each valid for `ttl` seconds.

    When a new key does not fit, the least recently used entry is evicted. Reading an entry and writing it both count
    as use. `clock` returns seconds and only needs to be monotonic.
    """

    def __init__(self, maxsize: int, ttl: float, clock: Callable[[], float] = time.monotonic) -> None:
        if maxsize < 1:
            raise ValueError("maxsize must be at least 1")
        if ttl <= 0:
            raise ValueError("ttl must be positive")
        self.maxsize = maxsize
        self.ttl = ttl
        self.stats = Stats()
        self._clock = clock
        self._entries: OrderedDict[Hashable, Entry] = OrderedDict()

    def get(self, key: Hashable, default: Any = None) -> Any:
        """The value of `key`, or `default` when it is absent or expired."""
        entry = self._entries.get(key)
        if entry is None or self._is_expired(entry):
            self._entries.pop(key, None)
            self.stats.misses += 1
            return default
        self.stats.hits += 1
        return entry.value

    def __getitem__(self, key: Hashable) -> Any:
        missing = object()
        value = self.get(key, missing)
        if value is missing:
            raise KeyError(key)
        return value

    def __setitem__(self, key: Hashable, value: Any) -> None:
        self._entries.pop(key, None)
        if len(self._entries) >= self.maxsize:
            self.expire()
        while len(self._entries) >= self.maxsize:
            self._entries.popitem(last=False)
            self.stats.evictions += 1
        self._entries[key] = Entry(value, self._clock() + self.ttl)

    def __delitem__(self, key: Hashable) -> None:
        del self._entries[key]

    def __contains__(self, key: Hashable) -> bool:
        entry = self._entries.get(key)
        return entry is not None and not self._is_expired(entry)

    def __len__(self) -> int:
        self.expire()
        return len(self._entries)

    def __iter__(self) -> Iterator[Hashable]:
        self.expire()
        return iter(list(self._entries))

    def expire(self) -> int:
        """Drop every expired entry; returns how many there were."""
        dead = [key for key, entry in self._entries.items() if self._is_expired(entry)]
        for key in dead:
            del self._entries[key]
        return len(dead)

    def clear(self) -> None:
        """Drop every entry. The counters stay."""
        self._entries.clear()

    def _is_expired(self, entry: Entry) -> bool:
        return self._clock() >= entry.expires
