"""Sums, shares, prices and measures."""

from harness.starter.generate.draw import Draw
from harness.starter.generate.family import Family, Module, write_module

_RUNNING = '''
def $fn($values: list[int], $start: int = 0) -> list[int]:
    """$doc"""
    $total = $start
    $result = []
    for $one in $values:
        $total += $one
        $result.append($total)
    return $result


def $gaps($values: list[int]) -> list[int]:
    """The difference of each $one to the one before it."""
    return [later - earlier for earlier, later in zip($values, $values[1:])]


def $peak($values: list[int]) -> int:
    """The largest running total of the $values; 0 if there are none."""
    if not $values:
        return 0
    return max($fn($values))
'''


def running_total(draw: Draw) -> Module:
    """Cumulative sums."""
    thing = draw.thing()
    fn = draw.glue(("running", "rolling", "growing"), (thing.one,), ("totals", "sums", "counts"))
    gaps = draw.glue((thing.one,), ("gaps", "steps", "changes", "jumps"))
    peak = draw.glue(("peak", "highest", "top"), (thing.one, thing.many), ("total", "sum"))
    slots = {
        "fn": fn,
        "gaps": gaps,
        "peak": peak,
        "values": thing.many,
        "one": thing.one,
        "start": draw.pick("start", "first", "opening"),
        "total": draw.pick("total", "so_far", "running"),
        "result": draw.pick("result", "totals", "found"),
        "doc": draw.pick(
            f"Totals of the {thing.many} so far, one for each {thing.one}, counted from a first value.",
            f"For each {thing.one} the sum of it and all before it, on top of the start value.",
        ),
    }
    start = slots["start"]
    data = [draw.numbers(draw.number(2, 5), 1, 20) for _ in range(5)]
    probes = [f"{fn}({data[0]})", f"{fn}({data[1]}, {start}={draw.number(2, 9)})", f"{fn}([{draw.number(1, 9)}])"]
    probes += [f"{fn}([])", f"{gaps}({data[2]})", f"{gaps}({data[3]})", f"{gaps}([{draw.number(1, 9)}])"]
    probes += [f"{peak}({data[4]})", f"{peak}([])", f"{peak}([{draw.number(2, 9)}, -{draw.number(1, 9)}])"]
    name = draw.pick("totals", "sums", "running", "cumulative")
    return write_module(draw, name, f"Running totals of {thing.many}.", _RUNNING, slots, probes)


_CLAMP = '''
def $clamp(value: int, $low: int, $high: int) -> int:
    """$doc"""
    if $low > $high:
        raise ValueError("$low is above $high")
    return max($low, min(value, $high))


def $inside(value: int, $low: int, $high: int) -> bool:
    """Whether the $one lies from $low to $high, both included."""
    return $low <= value <= $high


def $share(value: int, $low: int, $high: int) -> int:
    """Where the $one lies between $low (0) and $high ($full), rounded down."""
    if $high == $low:
        return 0
    return (value - $low) * $full // ($high - $low)
'''


def clamp_range(draw: Draw) -> Module:
    """Limits of a number."""
    thing = draw.thing()
    low, high = draw.pick(("low", "high"), ("lower", "upper"), ("floor", "ceiling"), ("least", "most"))
    full = draw.pick(100, 100, 1000, 10)
    slots = {
        "clamp": draw.glue(("clamp", "limit", "bound", "fit"), (thing.one,)),
        "inside": draw.glue((thing.one,), ("inside", "fits", "allowed", "in_range")),
        "share": draw.glue((thing.one,), ("share", "percent", "position", "fraction")),
        "low": low,
        "high": high,
        "full": full,
        "one": thing.one,
        "doc": draw.pick(
            f"The {thing.one}, or the nearest limit if it lies outside.",
            f"Keep the {thing.one} between two limits; raises ValueError if they are in the wrong order.",
        ),
    }
    small, large = draw.number(1, 9), draw.number(20, 60)
    middle = draw.number(small + 2, large - 2)
    values = (small, large, small - 1, large + draw.number(1, 9), middle)
    probes = [f"{slots['clamp']}({value}, {small}, {large})" for value in values]
    probes += [f"{slots['inside']}({value}, {small}, {large})" for value in values[:4]]
    probes += [f"{slots['share']}({value}, {small}, {large})" for value in (small, large, middle)]
    probes += [f"{slots['clamp']}({middle}, {large}, {small})", f"{slots['share']}({small}, {small}, {small})"]
    name = draw.pick("limits", "bounds", "ranges")
    return write_module(draw, name, f"Limits for {thing.many}.", _CLAMP, slots, probes)


FAMILIES: dict[str, Family] = {"running_total": running_total, "clamp_range": clamp_range}
