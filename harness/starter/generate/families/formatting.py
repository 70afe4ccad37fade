"""Values as text for people."""

from harness.starter.generate.draw import Draw
from harness.starter.generate.family import Family, Module, write_module

_SIZES = '''
UNITS = ["B", "kB", "MB", "GB"]


def $show(size: int, $base: int = $default) -> str:
    """$doc"""
    if size < 0:
        raise ValueError("size is negative")
    index = 0
    while size >= $base and index < len(UNITS) - 1:
        size //= $base
        index += 1
    return f"{size} {UNITS[index]}"


def $read(text: str, $base: int = $default) -> int:
    """The number of bytes that a text such as 3 kB means."""
    number, unit = text.split()
    return int(number) * $base ** UNITS.index(unit)


def $sum(texts: list[str]) -> str:
    """The sum of several such texts as one."""
    return $show(sum($read(text) for text in texts))
'''


def size_format(draw: Draw) -> Module:
    """Sizes with units."""
    thing = draw.thing()
    base = draw.pick(1000, 1024)
    slots = {
        "show": draw.glue(("show", "format", "print"), (thing.one,), ("size", "bytes")),
        "read": draw.glue(("read", "parse", "scan"), (thing.one,), ("size", "bytes")),
        "sum": draw.glue(("sum", "add", "total"), (thing.one,), ("sizes", "bytes")),
        "base": draw.pick("base", "factor", "thousand"),
        "default": base,
        "doc": draw.pick(
            f"The size of a {thing.one} in the largest unit that gives at least 1, rounded down.",
            f"A number of bytes with its unit; a unit has {base} of the one before it.",
        ),
    }
    n = draw.number(2, 90)
    probes = [f"$show({size})" for size in (n, base, base - 1, n * base, n * base**2, 0, -1, base**4)]
    probes += [f"$show({n * 500}, 500)", f"$read('{n} kB')", f"$read('{n} B')", "$read('1 MB')", f"$read('{n} kB', 10)"]
    probes += [f"$sum(['{n} kB', '2 kB'])", "$sum([])", f"$sum(['{n} B', '1 kB'])"]
    name = draw.pick("sizes", "units", "bytes_text")
    return write_module(draw, name, f"Sizes of {thing.many}.", _SIZES, slots, probes)


_JOIN = '''
def $join($many: list[str], $last: str = "$default") -> str:
    """$doc"""
    if not $many:
        return "$nobody"
    if len($many) == 1:
        return $many[0]
    return ", ".join($many[:-1]) + " " + $last + " " + $many[-1]


def $brief($many: list[str], limit: int = $limit) -> str:
    """The first $many, and how many more there are."""
    if len($many) <= limit:
        return $join($many)
    shown = $many[:limit]
    return ", ".join(shown) + f" and {len($many) - limit} more"


def $counted(count: int, $one: str, plural: str = "") -> str:
    """A number and the noun in the form that goes with it."""
    if count == 1:
        return f"1 {$one}"
    return f"{count} {plural or $one + 's'}"
'''


def join_words(draw: Draw) -> Module:
    """Lists in sentences."""
    thing = draw.thing()
    limit = draw.number(2, 3)
    slots = {
        "join": draw.glue(("join", "list", "tell"), (thing.many,)),
        "brief": draw.glue(("brief", "short", "few"), (thing.many,)),
        "counted": draw.glue(("counted", "number_of", "plural"), (thing.many, thing.one)),
        "one": thing.one,
        "many": thing.many,
        "last": draw.pick("word", "last", "link"),
        "default": draw.pick("and", "or"),
        "nobody": draw.pick("none", "nothing", "nobody"),
        "limit": limit,
        "doc": draw.pick(
            f"The {thing.many} as they stand in a sentence: commas, and a word before the last one.",
            f"A list of {thing.many} for people to read.",
        ),
    }
    words = draw.words(5)
    probes = [f"$join({words[:count]})" for count in (0, 1, 2, 3)] + [f"$join({words[:3]}, 'then')"]
    probes += [f"$join({words[3:]}, $last='nor')", f"$brief({words})", f"$brief({words[:limit]})"]
    probes += [f"$brief({words[: limit + 1]})", f"$brief({words}, 1)", f"$counted(1, '{words[0]}')"]
    probes += [f"$counted({draw.number(2, 9)}, '{words[1]}')", "$counted(2, 'leaf', 'leaves')", "$counted(0, 'leaf')"]
    probes += ["$counted(1, 'leaf', plural='leaves')"]
    name = draw.pick("sentences", "listing", "wording")
    return write_module(draw, name, f"Sentences about {thing.many}.", _JOIN, slots, probes)


_MONEY = '''
def $show(cents: int, $sep: str = "$default") -> str:
    """$doc"""
    sign = "-" if cents < 0 else ""
    whole, rest = divmod(abs(cents), 100)
    return f"{sign}{$group(whole, $sep)}.{rest:02d}"


def $group(number: int, $sep: str = "$default") -> str:
    """A number with its digits in groups of three."""
    digits = str(number)
    groups = []
    while len(digits) > 3:
        groups.insert(0, digits[-3:])
        digits = digits[:-3]
    return $sep.join([digits] + groups)


def $read(text: str) -> int:
    """The cents of a text such as 12.50."""
    whole, _, rest = text.partition(".")
    return int(whole) * 100 + int(rest.ljust(2, "0"))
'''


def money_format(draw: Draw) -> Module:
    """Amounts of money."""
    thing = draw.thing()
    sep = draw.pick("_", ",", " ")
    slots = {
        "show": draw.glue(("show", "format", "print"), (thing.one,), ("money", "cents", "sum")),
        "group": draw.glue(("group", "space", "arrange"), (thing.one,), ("digits", "number")),
        "read": draw.glue(("read", "parse", "scan"), (thing.one,), ("money", "cents", "sum")),
        "sep": draw.pick("sep", "gap", "mark_sign"),
        "default": sep,
        "doc": draw.pick(
            f"What a {thing.one} costs, with two digits behind the point.",
            "Cents as text, with the digits before the point in groups of three.",
        ),
    }
    n = draw.number(1, 99)
    large = draw.number(1_234_567, 98_765_432)
    probes = [f"$show({cents})" for cents in (n, n * 100 + 5, large, -n * 10, 0, 100_000)]
    probes += [f"$show({large}, '.')", f"$group({large})", f"$group({n})", "$group(1000)", f"$group({large}, $sep='-')"]
    probes += [f"$read('{n}.50')", f"$read('{n}.5')", f"$read('0.{n:02d}')", f"$read('{n}.00')"]
    name = draw.pick("money", "cents", "sums_text")
    return write_module(draw, name, f"Money for {thing.many}.", _MONEY, slots, probes)


_DURATION = '''
def $show(seconds: int, $short: bool = False) -> str:
    """$doc"""
    if seconds < 0:
        return "-" + $show(-seconds, $short)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    if $short and hours == 0:
        return f"{minutes}:{seconds:02d}"
    return f"{hours}:{minutes:02d}:{seconds:02d}"


def $read(text: str) -> int:
    """The seconds of a text such as 1:30:00 or 4:05."""
    total = 0
    for part in text.split(":"):
        total = total * 60 + int(part)
    return total


def $rounded(seconds: int, $step: int = $default) -> int:
    """Seconds rounded up to a multiple of the $step."""
    return (seconds + $step - 1) // $step * $step
'''


def clock_format(draw: Draw) -> Module:
    """Durations as a clock shows them."""
    thing = draw.thing()
    default = draw.pick(15, 30, 60)
    slots = {
        "show": draw.glue(("show", "format", "print"), (thing.one,), ("time", "duration", "clock")),
        "read": draw.glue(("read", "parse", "scan"), (thing.one,), ("time", "duration", "clock")),
        "rounded": draw.glue(("rounded", "billed", "charged"), (thing.one,), ("time", "seconds")),
        "short": draw.pick("short", "compact", "brief"),
        "step": draw.pick("unit", "slot", "grid"),
        "default": default,
        "doc": draw.pick(
            f"How long a {thing.one} takes, as hours, minutes and seconds.",
            "Seconds as h:mm:ss, or as m:ss if it is short and less than an hour.",
        ),
    }
    n, hour = draw.number(61, 3000), draw.number(3600, 30000)
    probes = [f"$show({n})", f"$show({hour})", f"$show({n}, True)", f"$show({hour}, $short=True)", "$show(0)"]
    probes += [f"$show(-{n})", "$show(3600, True)", "$show(59, True)", f"$show(-{n}, True)"]
    probes += ["$read('1:30:00')", f"$read('{n // 60}:{n % 60:02d}')", f"$read('{n % 50}')"]
    probes += [f"$rounded({n})", f"$rounded({default})", f"$rounded({default + 1})", f"$rounded({n}, 7)", "$rounded(0)"]
    name = draw.pick("durations", "clock", "times")
    return write_module(draw, name, f"Durations of {thing.many}.", _DURATION, slots, probes)


_COLUMNS = '''
def $bar(done: int, total: int, width: int = $default) -> str:
    """$doc"""
    if total <= 0:
        return "$blank" * width
    filled = min(done, total) * width // total
    return "$full" * filled + "$blank" * (width - filled)


def $line(cells: list[str], widths: list[int]) -> str:
    """One line of a table: the first cell to the left, the others to the right."""
    texts = [cells[0].ljust(widths[0])]
    for cell, width in zip(cells[1:], widths[1:]):
        texts.append(cell.rjust(width))
    return "|".join(texts)


def $widths(rows: list[list[str]]) -> list[int]:
    """The width of each column: that of its longest cell."""
    return [max(len(cell) for cell in column) for column in zip(*rows)]
'''


def table_lines(draw: Draw) -> Module:
    """Tables and bars."""
    thing = draw.thing()
    default = draw.pick(8, 10, 12)
    full, blank = draw.pick(("#", "."), ("=", "-"), ("*", "_"))
    slots = {
        "bar": draw.glue((thing.one,), ("bar", "meter", "gauge", "progress")),
        "line": draw.glue((thing.one,), ("line", "cells", "table_line")),
        "widths": draw.glue((thing.one,), ("widths", "columns", "sizes")),
        "default": default,
        "full": full,
        "blank": blank,
        "doc": draw.pick(
            f"A bar that shows how many {thing.many} are done.", "A bar filled by the share that is done."
        ),
    }
    total = draw.number(4, 20)
    a, b, c, d = draw.words(4)
    probes = [f"$bar({done}, {total})" for done in (0, 1, total // 2, total, total + 5)]
    probes += ["$bar(1, 0)", f"$bar({total // 2}, {total}, 4)", "$bar(1, 2, width=6)"]
    probes += [f"$line({[a, b]}, {[len(a) + 2, len(b) + 1]})", f"$line({[c, '12', '7']}, {[len(c), 4, 3]})"]
    probes += [f"$line({[d]}, {[len(d) + 1]})", f"$widths({[[a, 'x'], [b, 'yyy']]})", f"$widths({[[c, d, a]]})"]
    name = draw.pick("tables", "columns", "bars")
    return write_module(draw, name, f"Tables of {thing.many}.", _COLUMNS, slots, probes)


FAMILIES: dict[str, Family] = {
    "size_format": size_format,
    "join_words": join_words,
    "money_format": money_format,
    "clock_format": clock_format,
    "table_lines": table_lines,
}
