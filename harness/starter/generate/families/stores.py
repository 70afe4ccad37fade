"""Classes that keep a state: buffers, caches, counters, stocks."""

from harness.starter.generate.draw import Draw
from harness.starter.generate.family import Family, Module, steps, write_module

_RING = '''
class $Ring:
    """$doc"""

    def __init__(self, $size: int) -> None:
        if $size < 1:
            raise ValueError("$size must be positive")
        self.$size = $size
        self._$many: list[int] = []
        self.dropped = 0

    def $add(self, $one: int) -> None:
        """Keep a $one; the oldest goes when there are too many."""
        self._$many.append($one)
        if len(self._$many) > self.$size:
            self._$many.pop(0)
            self.dropped += 1

    def $latest(self, count: int = $default) -> list[int]:
        """The newest $many, newest first."""
        return self._$many[::-1][:count]

    def $full(self) -> bool:
        """Whether the next $one pushes another out."""
        return len(self._$many) == self.$size
'''


def ring_buffer(draw: Draw) -> Module:
    """The last few values."""
    thing = draw.thing()
    slots = {
        "Ring": draw.camel((thing.one,), ("ring", "buffer", "window", "trail")),
        "one": thing.one,
        "many": thing.many,
        "size": draw.pick("size", "limit", "capacity"),
        "default": draw.number(1, 2),
        "add": draw.pick("add", "append", "store"),
        "latest": draw.glue(("latest", "newest", "recent"), (thing.many,)),
        "full": draw.pick("full", "is_full"),
        "doc": draw.pick(f"The last {thing.many}, up to a fixed number.", f"Keeps the newest {thing.many} only."),
    }
    var = draw.pick("ring", "last", "kept")
    data = draw.numbers(5, 1, 50)
    size = draw.number(2, 3)
    new = f"{var} = $Ring({size})"
    adds = [f"{var}.$add({number})" for number in data]
    probes = [
        steps(new, *adds[:1], call=f"{var}.$latest()"),
        steps(new, *adds[:4], call=f"{var}.$latest({size})"),
        steps(new, *adds[:size], call=f"{var}.$latest(5)"),
        steps(new, *adds[: size + 1], call=f"{var}.$latest(5)"),
        steps(new, call=f"{var}.$latest()"),
        steps(new, *adds[:size], call=f"{var}.$full()"),
        steps(new, *adds[: size - 1], call=f"{var}.$full()"),
        steps(new, *adds[: size + 2], call=f"[{var}.dropped, {var}.$full()]"),
        steps(new, *adds[: size + 1], call=f"[{var}.dropped, {var}.$latest(1)]"),
        steps(new, *adds[:size], call=f"[{var}.dropped, {var}.$latest(9)]"),
        steps(call="$Ring(0).$full()"),
        steps(call="$Ring(1).$full()"),
    ]
    name = draw.pick("ring", "buffer", "recent")
    return write_module(draw, name, f"The newest {thing.many}.", _RING, slots, probes)


_CACHE = '''
class $Cache:
    """$doc"""

    def __init__(self, limit: int = $default) -> None:
        self.limit = limit
        self.$hits = 0
        self.$misses = 0
        self._$many: dict[str, int] = {}

    def $get(self, key: str) -> int | None:
        """The $one of a key, or None; a $one that is read counts as used."""
        if key not in self._$many:
            self.$misses += 1
            return None
        self.$hits += 1
        self._$many[key] = self._$many.pop(key)
        return self._$many[key]

    def $put(self, key: str, $one: int) -> None:
        """Keep a $one; what was used longest ago goes when there are too many."""
        self._$many.pop(key, None)
        self._$many[key] = $one
        if len(self._$many) > self.limit:
            del self._$many[next(iter(self._$many))]

    def $keys(self) -> list[str]:
        """The keys, the one used longest ago first."""
        return list(self._$many)
'''


def recent_cache(draw: Draw) -> Module:
    """A cache of what was used last."""
    thing = draw.thing()
    hits, misses = draw.pick(("hits", "misses"), ("found", "missed"))
    slots = {
        "Cache": draw.camel((thing.one,), ("cache", "memory", "shelf", "store")),
        "one": thing.one,
        "many": thing.many,
        "default": 2,
        "hits": hits,
        "misses": misses,
        "get": draw.pick("get", "read", "fetch"),
        "put": draw.pick("put", "save", "write"),
        "keys": draw.glue((thing.one,), ("keys", "names")),
        "doc": draw.pick(
            f"Remembers the {thing.many} that were used last.", f"A cache of {thing.many} with a fixed size."
        ),
    }
    var = draw.pick("cache", "memory", "box")
    a, b, c, d = draw.words(4)
    numbers = draw.numbers(4, 1, 90)
    new = f"{var} = $Cache()"
    puts = [f"{var}.$put('{key}', {number})" for key, number in zip((a, b, c, d), numbers, strict=True)]
    again = f"{var}.$put('{a}', {numbers[3] + 100})"
    probes = [
        steps(new, puts[0], call=f"{var}.$get('{a}')"),
        steps(new, puts[0], call=f"{var}.$get('{b}')"),
        steps(new, *puts[:3], call=f"{var}.$keys()"),
        steps(new, *puts[:2], call=f"{var}.$keys()"),
        steps(new, *puts[:2], f"{var}.$get('{a}')", puts[2], call=f"{var}.$keys()"),
        steps(new, *puts[:2], again, call=f"{var}.$keys()"),
        steps(new, *puts[:2], again, puts[3], call=f"{var}.$get('{a}')"),
        steps(new, puts[0], f"{var}.$get('{a}')", call=f"[{var}.$hits, {var}.$keys()]"),
        steps(new, f"{var}.$get('{c}')", call=f"[{var}.$misses, {var}.$keys()]"),
        steps(f"{var} = $Cache(3)", *puts, call=f"{var}.$keys()"),
        steps(new, call=f"{var}.$keys()"),
    ]
    name = draw.pick("cache", "memory", "lookup")
    return write_module(draw, name, f"A cache of {thing.many}.", _CACHE, slots, probes)


_TALLY = '''
class $Tally:
    """$doc"""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def $add(self, name: str, times: int = 1) -> int:
        """Count a $one; returns how often it was counted so far."""
        if times < 0:
            raise ValueError("times is negative")
        self._counts[name] = self._counts.get(name, 0) + times
        return self._counts[name]

    def $drop(self, name: str) -> None:
        """Take one back; a $one that was never counted stays at nothing."""
        if name not in self._counts:
            return
        self._counts[name] -= 1
        if self._counts[name] <= 0:
            del self._counts[name]

    def $total(self) -> int:
        """How many $many were counted in all."""
        return sum(self._counts.values())

    def $most(self) -> list[tuple[str, int]]:
        """All $many with their counts, the most frequent first."""
        return sorted(self._counts.items(), key=lambda pair: (-pair[1], pair[0]))
'''


def tally_counter(draw: Draw) -> Module:
    """Counts by name."""
    thing = draw.thing()
    slots = {
        "Tally": draw.camel((thing.one,), ("tally", "counter", "count", "census")),
        "one": thing.one,
        "many": thing.many,
        "add": draw.pick("add", "count", "note"),
        "drop": draw.pick("drop", "undo", "subtract"),
        "total": draw.pick("total", "size", "all"),
        "most": draw.glue(("most", "sorted", "ranked"), (thing.many,)),
        "doc": draw.pick(f"Counts how often {thing.many} occur.", f"A tally of {thing.many} by name."),
    }
    var = draw.pick("tally", "counts", "seen")
    a, b, c = draw.words(3)
    n, m = draw.number(2, 5), draw.number(6, 9)
    new = f"{var} = $Tally()"
    one, two, three = f"{var}.$add('{a}')", f"{var}.$add('{b}', {n})", f"{var}.$add('{c}', {m})"
    drop = f"{var}.$drop('{a}')"
    probes = [
        steps(new, call=one),
        steps(new, two, call=f"{var}.$add('{b}')"),
        steps(new, one, call=f"{var}.$add('{a}', {m})"),
        steps(new, call=f"{var}.$add('{a}', -1)"),
        steps(new, call=f"{var}.$add('{a}', 0)"),
        steps(new, one, two, call=f"{var}.$total()"),
        steps(new, call=f"{var}.$total()"),
        steps(new, one, two, three, call=f"{var}.$most()"),
        steps(new, two, f"{var}.$add('{a}', {n})", call=f"{var}.$most()"),
        steps(new, one, two, drop, call=f"{var}.$most()"),
        steps(new, one, two, f"{var}.$drop('{b}')", call=f"{var}.$most()"),
        steps(new, two, drop, call=f"{var}.$total()"),
        steps(new, one, one, drop, call=f"{var}.$total()"),
    ]
    name = draw.pick("tally", "counts", "counting")
    return write_module(draw, name, f"A tally of {thing.many}.", _TALLY, slots, probes)


_STOCK = '''
class $Missing(Exception):
    """There is less in stock than was asked for."""


class $Stock:
    """$doc"""

    def __init__(self, $least: int = $default) -> None:
        self.$least = $least
        self._counts: dict[str, int] = {}

    def $deliver(self, name: str, count: int) -> None:
        """Put some into the stock."""
        self._counts[name] = self._counts.get(name, 0) + count

    def $take(self, name: str, count: int = 1) -> int:
        """Take some out; returns how many stay."""
        there = self._counts.get(name, 0)
        if count > there:
            raise $Missing(f"only {there} of {name}")
        self._counts[name] = there - count
        return self._counts[name]

    def $low(self) -> list[str]:
        """The names of which there are fewer than the least number, sorted."""
        return sorted(name for name, count in self._counts.items() if count < self.$least)
'''


def stock_inventory(draw: Draw) -> Module:
    """A stock with deliveries."""
    thing = draw.thing()
    default = draw.number(2, 5)
    slots = {
        "Missing": draw.camel((thing.one,), ("stock", "supply"), ("error", "shortage", "missing")),
        "Stock": draw.camel((thing.one,), ("stock", "store", "depot", "supply")),
        "least": draw.pick("least", "minimum", "reserve"),
        "default": default,
        "deliver": draw.pick("deliver", "add", "receive"),
        "take": draw.pick("take", "remove", "sell"),
        "low": draw.glue(("low", "scarce", "missing"), (thing.many, "names")),
        "doc": draw.pick(f"How many {thing.many} of each name there are.", f"A stock of {thing.many}."),
    }
    var = draw.pick("stock", "store", "depot")
    a, b, c = draw.words(3)
    n = draw.number(5, 9)
    new = f"{var} = $Stock()"
    fill = f"{var}.$deliver('{a}', {n})"
    some = f"{var}.$deliver('{b}', {default})"
    few = f"{var}.$deliver('{c}', {default - 1})"
    probes = [
        steps(new, fill, call=f"{var}.$take('{a}')"),
        steps(new, fill, call=f"{var}.$take('{a}', {n})"),
        steps(new, fill, call=f"{var}.$take('{a}', {n + 1})"),
        steps(new, fill, call=f"{var}.$take('{b}')"),
        steps(new, fill, fill, call=f"{var}.$take('{a}', 3)"),
        steps(new, fill, f"{var}.$take('{a}', 2)", call=f"{var}.$take('{a}', 2)"),
        steps(new, fill, some, few, call=f"{var}.$low()"),
        steps(new, fill, few, f"{var}.$deliver('{b}', 0)", call=f"{var}.$low()"),
        steps(new, some, f"{var}.$take('{b}')", call=f"{var}.$low()"),
        steps(f"{var} = $Stock({n + 1})", fill, some, call=f"{var}.$low()"),
        steps(new, call=f"{var}.$low()"),
    ]
    name = draw.pick("stock", "depot", "supply")
    return write_module(draw, name, f"A stock of {thing.many}.", _STOCK, slots, probes)


FAMILIES: dict[str, Family] = {
    "ring_buffer": ring_buffer,
    "recent_cache": recent_cache,
    "tally_counter": tally_counter,
    "stock_inventory": stock_inventory,
}
