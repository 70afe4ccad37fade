"""Lists: streaks, batches, windows, rankings."""

from harness.starter.generate.draw import Draw
from harness.starter.generate.family import Family, Module, write_module

_STREAK = '''
def $longest($many: list[int], $limit: int = $default) -> int:
    """$doc"""
    best = 0
    current = 0
    for $one in $many:
        if $one >= $limit:
            current += 1
            best = max(best, current)
        else:
            current = 0
    return best


def $first($many: list[int], $limit: int = $default) -> int:
    """The index of the first $one that reaches the $limit; -1 if none does."""
    for index, $one in enumerate($many):
        if $one >= $limit:
            return index
    return -1
'''


def longest_streak(draw: Draw) -> Module:
    """Runs of values above a limit."""
    thing = draw.thing()
    default = draw.number(3, 12)
    slots = {
        "longest": draw.glue(("longest", "best", "largest"), (thing.one,), ("streak", "series", "run", "stretch")),
        "first": draw.glue(("first", "earliest", "find"), ("high", "good", "strong"), (thing.one,)),
        "one": thing.one,
        "many": thing.many,
        "limit": draw.pick("limit", "bar", "target"),
        "default": default,
        "doc": draw.pick(
            f"How many {thing.many} in a row reach the limit, at most.",
            f"The length of the longest stretch of {thing.many} that are not below the limit.",
        ),
    }
    low = draw.number(0, default - 1)
    data = [default, default + 1, low, default + 3, default, default + 2, low, default + 1]
    tail = [low, low, default, default + 4]
    mixed = draw.numbers(6, default - 3, default + 3)
    probes = [f"$longest({data})", f"$longest({tail})", f"$longest({mixed})", "$longest([])", f"$longest([{low}])"]
    probes += [f"$longest({mixed}, {default + 2})", f"$longest({data}, $limit={default + 1})"]
    probes += [f"$first({tail})", f"$first({mixed}, {default + 1})", f"$first([{low}, {low}])", "$first([])"]
    probes += [f"$first({data[2:]}, $limit={default + 1})"]
    name = draw.pick("streaks", "series", "stretches")
    return write_module(draw, name, f"Streaks of {thing.many}.", _STREAK, slots, probes)


_BATCHES = '''
def $cut($many: list[int], $size: int) -> list[list[int]]:
    """$doc"""
    if $size < 1:
        raise ValueError("$size must be positive")
    result = []
    for start in range(0, len($many), $size):
        result.append($many[start:start + $size])
    return result


def $count($many: list[int], $size: int) -> int:
    """How many batches there are, a last short one included."""
    return (len($many) + $size - 1) // $size


def $short($many: list[int], $size: int) -> int:
    """How many $many the last batch lacks to be full."""
    return -len($many) % $size
'''


def cut_batches(draw: Draw) -> Module:
    """Lists cut into pieces of one size."""
    thing = draw.thing()
    slots = {
        "cut": draw.glue(("cut", "split", "slice", "divide"), (thing.many,)),
        "count": draw.glue(("count", "number_of"), (thing.one,), ("batches", "groups", "chunks")),
        "short": draw.glue(("missing", "lacking", "open"), (thing.many,)),
        "many": thing.many,
        "size": draw.pick("size", "width", "per_batch"),
        "doc": draw.pick(
            f"The {thing.many} in batches of this size; the last one may be shorter.",
            "Cut a list into lists of the given size, in order.",
        ),
    }
    size = draw.number(2, 4)
    data = draw.numbers(size * 2 + 1, 1, 30)
    probes = [f"$cut({data}, {size})", f"$cut({data[: size * 2]}, {size})", f"$cut([], {size})"]
    probes += [f"$cut({data[:3]}, 0)", f"$cut({data[:4]}, 1)", f"$cut({data[:2]}, {size + 3})"]
    probes += [f"$count({data}, {size})", f"$count({data[: size * 2]}, {size})", f"$count([], {size})"]
    probes += [f"$short({data}, {size + 1})", f"$short({data[: size * 2]}, {size})", f"$short({data}, {size})"]
    name = draw.pick("batches", "chunks", "pieces_of")
    return write_module(draw, name, f"Batches of {thing.many}.", _BATCHES, slots, probes)


_WINDOW = '''
def $average($many: list[int], $width: int = $default) -> list[float]:
    """$doc"""
    result = []
    for end in range($width, len($many) + 1):
        window = $many[end - $width:end]
        result.append(sum(window) / $width)
    return result


def $rising($many: list[int]) -> bool:
    """Whether every $one is larger than the one before it."""
    for index in range(1, len($many)):
        if $many[index] <= $many[index - 1]:
            return False
    return True


def $spread($many: list[int]) -> int:
    """The largest $one less the smallest; 0 for no $many."""
    if not $many:
        return 0
    return max($many) - min($many)
'''


def moving_average(draw: Draw) -> Module:
    """Averages over a window."""
    thing = draw.thing()
    default = draw.number(2, 3)
    slots = {
        "average": draw.glue(("moving", "smooth", "window"), (thing.one,), ("average", "mean", "means")),
        "rising": draw.glue((thing.many,), ("rising", "growing", "increase", "climb")),
        "spread": draw.glue((thing.one,), ("spread", "range", "extent")),
        "one": thing.one,
        "many": thing.many,
        "width": draw.pick("width", "size", "span"),
        "default": default,
        "doc": draw.pick(
            f"The mean of every {default} neighbouring {thing.many}, or of as many as the second argument says.",
            f"Averages over a window that moves along the {thing.many}.",
        ),
    }
    # Multiples of 12 have averages without long fractions.
    data = [12 * number for number in draw.numbers(5, 1, 9)]
    up = sorted(draw.sample(range(1, 40), 4))
    probes = [f"$average({data})", f"$average({data}, 4)", f"$average({data[:2]}, $width=1)", "$average([])"]
    probes += [f"$average({data[:3]}, 3)", f"$average({data[:2]}, 3)"]
    probes += [f"$rising({up})", f"$rising({[*up[:2], up[1]]})", f"$rising({up[::-1]})", f"$rising({up[:1]})"]
    probes += [f"$rising({[*up[2:], up[0]]})", f"$spread({up[::-1]})", "$spread([])", f"$spread({data})"]
    name = draw.pick("windows", "smoothing", "trends")
    return write_module(draw, name, f"Moving averages of {thing.many}.", _WINDOW, slots, probes)


_UNIQUE = '''
def $unique($many: list[str]) -> list[str]:
    """$doc"""
    seen = set()
    result = []
    for $one in $many:
        key = $one.lower()
        if key in seen:
            continue
        seen.add(key)
        result.append($one)
    return result


def $repeated($many: list[str], $times: int = 2) -> list[str]:
    """The $many that occur at least so many times, sorted."""
    counts: dict[str, int] = {}
    for $one in $many:
        counts[$one] = counts.get($one, 0) + 1
    return sorted(name for name, count in counts.items() if count >= $times)
'''


def unique_items(draw: Draw) -> Module:
    """Duplicates."""
    thing = draw.thing()
    slots = {
        "unique": draw.glue(("unique", "distinct", "different", "single"), (thing.many,)),
        "repeated": draw.glue(("repeated", "frequent", "common", "double"), (thing.many,)),
        "one": thing.one,
        "many": thing.many,
        "times": draw.pick("times", "least", "minimum"),
        "doc": draw.pick(
            f"The {thing.many} without those that came before, upper and lower case being the same.",
            "Leave out what is a repetition but for upper and lower case; the first one stays.",
        ),
    }
    one, two, three = draw.words(3)
    data = [one, two, one, three, two, one]
    cased = [one.capitalize(), two, one, three.upper(), two.upper()]
    probes = [f"$unique({data})", f"$unique({cased})", "$unique([])", f"$unique({[three, two]})"]
    probes += [f"$repeated({data})", f"$repeated({data}, 3)", f"$repeated({data}, $times=1)", "$repeated([])"]
    probes += [f"$repeated({[three, two, three, one, two]})", f"$unique({[two, two.upper()]})"]
    name = draw.pick("duplicates", "uniques", "repeats")
    return write_module(draw, name, f"Repeated {thing.many}.", _UNIQUE, slots, probes)


_RANKING = '''
def $top($many: dict[str, int], $count: int = $default) -> list[str]:
    """$doc"""
    order = sorted($many, key=lambda name: (-$many[name], name))
    return order[:$count]


def $rank($many: dict[str, int], name: str) -> int:
    """The place of a name, counted from 1; equal $many share a place."""
    if name not in $many:
        raise KeyError(name)
    better = [other for other in $many.values() if other > $many[name]]
    return len(better) + 1


def $leader($many: dict[str, int]) -> str | None:
    """The name of the best, or None if there is nobody."""
    if not $many:
        return None
    return $top($many, 1)[0]
'''


def top_ranking(draw: Draw) -> Module:
    """Names in the order of their values."""
    thing = draw.thing()
    default = draw.number(2, 3)
    slots = {
        "top": draw.glue(("top", "best", "leading"), (thing.one,), ("names", "list", "holders")),
        "rank": draw.glue((thing.one,), ("rank", "place", "position")),
        "leader": draw.glue((thing.one,), ("leader", "winner", "champion", "record")),
        "many": thing.many,
        "count": draw.pick("count", "size", "many_names"),
        "default": default,
        "doc": draw.pick(
            f"The names with the highest {thing.many}, best first; equal ones by the alphabet.",
            f"Names in falling order of their {thing.many}; ties are in the order of the names.",
        ),
    }
    names = draw.words(5)
    data = dict(zip(names, draw.sample(range(1, 50), 5), strict=True))
    tied = {names[0]: 7, names[1]: 9, names[2]: 7, names[3]: 4}
    probes = [f"$top({data})", f"$top({tied})", f"$top({data}, 1)", f"$top({tied}, $count=4)", "$top({})"]
    probes += [f"$rank({tied}, '{name}')" for name in (*names[:4], names[4])]
    probes += [f"$rank({data}, '{names[4]}')", f"$leader({data})", f"$leader({tied})", "$leader({})"]
    name = draw.pick("ranking", "ranks", "placing")
    return write_module(draw, name, f"A ranking by {thing.many}.", _RANKING, slots, probes)


_ROTATE = '''
def $rotate($many: list[str], $steps: int = 1) -> list[str]:
    """$doc"""
    if not $many:
        return []
    cut = $steps % len($many)
    return $many[cut:] + $many[:cut]


def $after($many: list[str], name: str) -> str:
    """Who comes after this one; after the last one comes the first."""
    index = $many.index(name)
    return $many[(index + 1) % len($many)]


def $pairs($many: list[str]) -> list[tuple[str, str]]:
    """Neighbours as pairs, without the pair of the last and the first."""
    return [($many[index], $many[index + 1]) for index in range(len($many) - 1)]
'''


def rotate_list(draw: Draw) -> Module:
    """Lists as circles."""
    thing = draw.thing()
    slots = {
        "rotate": draw.glue(("rotate", "turn", "shift", "cycle"), (thing.many,)),
        "after": draw.glue((thing.one, "next"), ("after", "behind", "following")),
        "pairs": draw.glue((thing.one,), ("pairs", "neighbours", "couples", "links")),
        "many": thing.many,
        "steps": draw.pick("times", "turns", "places"),
        "doc": draw.pick(
            f"The {thing.many} with the first ones moved to the end, one by default.",
            f"Move the front of the list of {thing.many} behind its end.",
        ),
    }
    words = draw.words(4)
    probes = [f"$rotate({words})", f"$rotate({words}, 3)", f"$rotate({words}, $steps=0)", f"$rotate({words[:3]}, 4)"]
    probes += ["$rotate([])", f"$rotate({words[:3]}, -1)", f"$after({words}, '{words[1]}')"]
    probes += [f"$after({words}, '{words[3]}')", f"$after({words[:2]}, '{words[0]}')", f"$after({words[:1]}, 'none')"]
    probes += [f"$pairs({words})", f"$pairs({words[:1]})", f"$pairs({words[:2]})", "$pairs([])"]
    name = draw.pick("circle", "turns", "rotation")
    return write_module(draw, name, f"A circle of {thing.many}.", _ROTATE, slots, probes)


_MERGE = '''
def $merge(left: list[int], right: list[int]) -> list[int]:
    """$doc"""
    result = []
    i = j = 0
    while i < len(left) and j < len(right):
        if left[i] <= right[j]:
            result.append(left[i])
            i += 1
        else:
            result.append(right[j])
            j += 1
    return result + left[i:] + right[j:]


def $place($many: list[int], $one: int) -> int:
    """The index at which a $one goes into the sorted list, behind equal ones."""
    for index, other in enumerate($many):
        if other > $one:
            return index
    return len($many)


def $insert($many: list[int], $one: int) -> list[int]:
    """A sorted list with one $one more."""
    index = $place($many, $one)
    return $many[:index] + [$one] + $many[index:]
'''


def merge_sorted(draw: Draw) -> Module:
    """Sorted lists."""
    thing = draw.thing()
    slots = {
        "merge": draw.glue(("merge", "combine", "blend", "unite"), (thing.many,)),
        "place": draw.glue((thing.one,), ("place", "slot", "index", "spot")),
        "insert": draw.glue(("insert", "add", "file"), (thing.one,)),
        "one": thing.one,
        "many": thing.many,
        "doc": draw.pick(
            f"Two sorted lists of {thing.many} as one sorted list.",
            "Merge what is sorted already, so that the result is sorted, too.",
        ),
    }
    left, right = sorted(draw.numbers(3, 1, 20)), sorted(draw.numbers(4, 1, 25))
    middle = right[1]
    probes = [f"$merge({left}, {right})", f"$merge({left}, [])", f"$merge([], {right})", f"$merge({right}, {left})"]
    probes += [f"$merge([1, 2], {right[2:]})", f"$place({right}, {middle})", f"$place({right}, 0)"]
    probes += [f"$place({left}, 40)", f"$place([], {middle})", f"$insert({right}, {middle})"]
    probes += [f"$insert({left}, {draw.number(5, 15)})", f"$insert({left}, 30)", f"$insert([], {middle})"]
    name = draw.pick("merging", "sorting", "sorted_lists")
    return write_module(draw, name, f"Sorted lists of {thing.many}.", _MERGE, slots, probes)


FAMILIES: dict[str, Family] = {
    "longest_streak": longest_streak,
    "cut_batches": cut_batches,
    "moving_average": moving_average,
    "unique_items": unique_items,
    "top_ranking": top_ranking,
    "rotate_list": rotate_list,
    "merge_sorted": merge_sorted,
}
