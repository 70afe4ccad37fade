"""Text that people or programs wrote, read into values."""

from harness.starter.generate.draw import Draw
from harness.starter.generate.family import Family, Module, write_module

_SETTINGS = '''
def $parse(lines: list[str], $sep: str = "$default") -> dict[str, str]:
    """$doc"""
    result = {}
    for number, line in enumerate(lines, start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        if $sep not in line:
            raise ValueError(f"line {number}: no separator")
        key, text = line.split($sep, 1)
        result[key.strip().lower()] = text.strip()
    return result


def $switch(text: str) -> bool:
    """Whether a word such as yes, on or true stands for True."""
    return text.strip().lower() in ("yes", "on", "true", "1")


def $number(settings: dict[str, str], key: str, $fallback: int = $least) -> int:
    """A setting as a number; the fallback where it is missing."""
    if key not in settings:
        return $fallback
    return int(settings[key])
'''


def key_values(draw: Draw) -> Module:
    """Files of settings."""
    thing = draw.thing()
    sep = draw.pick("=", ":")
    least = draw.number(1, 9)
    slots = {
        "parse": draw.glue(("parse", "read", "load"), (thing.one,), ("settings", "options", "fields")),
        "switch": draw.glue((thing.one,), ("switch", "flag", "enabled")),
        "number": draw.glue((thing.one,), ("number", "count", "integer")),
        "sep": draw.pick("sep", "mark_sign", "joint"),
        "default": sep,
        "fallback": draw.pick("fallback", "missing", "otherwise"),
        "least": least,
        "doc": draw.pick(
            f"The settings of a {thing.one}: one a line, keys in lower case; empty lines and comments are left out.",
            "Keys and texts of the lines; a line that starts with a number sign is a comment.",
        ),
    }
    a, b, c = draw.words(3)
    n = draw.number(10, 99)
    lines = [f"{a} {sep} {b}", "", "# note", f"{c.upper()}{sep}{n}"]
    probes = [f"$parse({lines})", f"$parse({[f'  {a}{sep}{b}{sep}{c}  ']})", "$parse([])", f"$parse({[a, b]})"]
    probes += [f"$parse({[lines[0], c]})", f"$parse({[f'{a} ~ {n}']}, '~')", f"$parse({[f'{b}|{c} ']}, $sep='|')"]
    probes += [f"$switch('{word}')" for word in ("yes", " On ", "no", "TRUE", "")]
    probes += [f"$number({{'{a}': '{n}'}}, '{a}')", f"$number({{}}, '{a}')", f"$number({{'{a}': '1'}}, '{b}', {n})"]
    probes += [f"$number({{'{a}': '{n}'}}, '{b}', $fallback=0)"]
    name = draw.pick("settings", "options", "config")
    return write_module(draw, name, f"Settings of {thing.many}.", _SETTINGS, slots, probes)


_RANGES = '''
def $parse(text: str) -> list[int]:
    """$doc"""
    numbers: list[int] = []
    for piece in text.split(","):
        if not piece.strip():
            continue
        first, dash, last = piece.partition("-")
        if not dash:
            last = first
        if int(first) > int(last):
            raise ValueError(f"{piece.strip()} runs backwards")
        numbers.extend(range(int(first), int(last) + 1))
    return sorted(set(numbers))


def $show(numbers: list[int]) -> str:
    """Sorted numbers as text; neighbours become a range."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)
'''


def range_list(draw: Draw) -> Module:
    """Ranges such as 1-3,7."""
    thing = draw.thing()
    slots = {
        "parse": draw.glue(("parse", "read", "expand"), (thing.one,), ("ranges", "numbers", "list")),
        "show": draw.glue(("show", "format", "pack"), (thing.one,), ("ranges", "numbers", "list")),
        "doc": draw.pick(
            f"The numbers of the {thing.many} that a text such as 1-3,7 means, sorted.",
            "Numbers and ranges as a sorted list without repetitions; both ends of a range belong to it.",
        ),
    }
    a = draw.number(1, 9)
    b, c = a + draw.number(2, 4), a + draw.number(8, 20)
    texts = (f"{a}-{b},{c}", f"{c}, {a}", f"{a}-{b}, {b}-{b + 2}", f"{b}-{a}", "", f"{a},,{b}", f"{a}-{a}", f"{c}")
    probes = [f"$parse('{text}')" for text in texts]
    lists: tuple[list[int], ...] = ([a, a + 1, a + 2, c], [a, b], [c], [], [a, a + 1, b + 1, b + 2, b + 3])
    probes += [f"$show({numbers})" for numbers in lists]
    name = draw.pick("ranges", "selection", "number_lists")
    return write_module(draw, name, f"Ranges of {thing.many}.", _RANGES, slots, probes)


_VERSIONS = '''
def $split(version: str) -> list[int]:
    """The numbers of a version such as v1.10; zeros at the end do not count."""
    numbers = [int(part) for part in version.removeprefix("v").split(".")]
    while len(numbers) > 1 and numbers[-1] == 0:
        numbers.pop()
    return numbers


def $newer(version: str, other: str) -> bool:
    """$doc"""
    return $split(version) > $split(other)


def $latest(versions: list[str]) -> str:
    """The newest of the versions; raises ValueError if there are none."""
    if not versions:
        raise ValueError("no versions")
    return max(versions, key=$split)


def $bump(version: str, place: int = $default) -> str:
    """The version after a change of its number at this place; what follows starts at 0 again."""
    numbers = $split(version)
    numbers += [0] * (place + 1 - len(numbers))
    numbers[place] += 1
    return ".".join(str(number) for number in numbers[:place + 1])
'''


def version_order(draw: Draw) -> Module:
    """Version numbers."""
    thing = draw.thing()
    default = draw.number(1, 2)
    slots = {
        "split": draw.glue(("split", "parse", "read"), (thing.one,), ("version", "release")),
        "newer": draw.glue((thing.one,), ("newer", "is_newer", "outdates", "later")),
        "latest": draw.glue(("latest", "newest", "last"), (thing.one,), ("version", "release")),
        "bump": draw.glue(("bump", "raise", "next"), (thing.one,), ("version", "release")),
        "default": default,
        "doc": draw.pick(
            f"Whether the first version of a {thing.one} is newer than the other one.",
            "Compare two versions by their numbers, not by their text.",
        ),
    }
    a, b = draw.number(1, 8), draw.number(2, 9)
    v = [f"{a}.{b}", f"{a}.{b + 8}", f"v{a}.{b}.0", f"{a + 1}.0", f"{a}.{b}.{a}"]
    probes = [f"$split('{version}')" for version in (*v, "0.0")]
    probes += [f"$newer('{v[i]}', '{v[j]}')" for i, j in ((0, 1), (1, 0), (0, 2), (2, 0), (4, 0), (1, 3))]
    probes += [f"$latest({v[:2]})", f"$latest({v[::-1]})", "$latest([])", f"$latest({[v[4], v[0]]})"]
    probes += [f"$bump('{v[4]}')", f"$bump('{v[0]}', 0)", f"$bump('{v[0]}', place=2)", f"$bump('{a}')"]
    name = draw.pick("versions", "releases", "numbering")
    return write_module(draw, name, f"Versions of {thing.many}.", _VERSIONS, slots, probes)


_SPANS = '''
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": $day}


def $parse(text: str) -> int:
    """$doc"""
    total = 0
    digits = ""
    for char in text:
        if char.isdigit():
            digits += char
        elif char in SECONDS and digits:
            total += int(digits) * SECONDS[char]
            digits = ""
        elif char != " ":
            raise ValueError(f"no unit: {char}")
    if digits:
        raise ValueError("a unit is missing")
    return total


def $longer(text: str, other: str) -> bool:
    """Whether the first of two such texts means the longer time."""
    return $parse(text) > $parse(other)
'''


def span_parser(draw: Draw) -> Module:
    """Times such as 1h30m."""
    thing = draw.thing()
    slots = {
        "parse": draw.glue(("parse", "read", "scan"), (thing.one,), ("time", "span", "wait")),
        "longer": draw.glue((thing.one,), ("longer", "exceeds", "lasts_longer")),
        "day": 86400,
        "doc": draw.pick(
            f"How many seconds a {thing.one} takes by a text such as 1h30m.",
            "The seconds of a text of numbers with the units s, m, h and d.",
        ),
    }
    a, b = draw.number(1, 9), draw.number(10, 59)
    texts = (f"{a}h{b}m", f"{b}s", f"{a}d", f"{a}h {b}s", "", f"{b}", f"{a}x", "h", f"{a}h{b}m{a}s")
    probes = [f"$parse('{text}')" for text in texts]
    probes += [f"$longer('{a}h', '{b}m')", f"$longer('{b}s', '{b}s')", f"$longer('{a}m', '{a}h')"]
    probes += [f"$longer('{a}d', '{a}h')"]
    name = draw.pick("spans", "waiting", "periods")
    return write_module(draw, name, f"Times of {thing.many}.", _SPANS, slots, probes)


_FIELDS = '''
def $split(line: str, $sep: str = "$default") -> list[str]:
    """$doc"""
    fields = []
    current = ""
    quoted = False
    for char in line:
        if char == "'":
            quoted = not quoted
        elif char == $sep and not quoted:
            fields.append(current.strip())
            current = ""
        else:
            current += char
    if quoted:
        raise ValueError("a quote stays open")
    fields.append(current.strip())
    return fields


def $records(header: str, lines: list[str]) -> list[dict[str, str]]:
    """One dict for each line, with the names of the header as keys; empty lines are left out."""
    names = $split(header)
    return [dict(zip(names, $split(line))) for line in lines if line.strip()]
'''


def split_fields(draw: Draw) -> Module:
    """Lines with separators."""
    thing = draw.thing()
    sep = draw.pick(",", ";")
    slots = {
        "split": draw.glue(("split", "cut", "parse"), (thing.one,), ("line", "fields", "row")),
        "records": draw.glue((thing.one,), ("records", "table", "dicts")),
        "sep": draw.pick("sep", "comma", "border"),
        "default": sep,
        "doc": draw.pick(
            f"The fields of a line about a {thing.one}; a separator inside quotes belongs to the field.",
            "Cut a line at the separators that are not quoted; spaces around a field do not count.",
        ),
    }
    a, b, c, d = draw.words(4)
    quoted = f"chr(39) + '{a}{sep}{b}' + chr(39) + '{sep}{c}'"
    lines = [f"{a}{sep} {b}", "", f"{c}{sep}{d}"]
    probes = [f"$split('{a}{sep}{b}')", f"$split(' {a} {sep}{sep}{c}')", f"$split({quoted})", "$split('')"]
    probes += [f"$split(chr(39) + '{a}')", f"$split('{a}|{b}', '|')", f"$split('{d}')", f"$split('{a}-{c}', $sep='-')"]
    probes += [f"$records('{b}{sep}{c}', {lines})", f"$records('{a}', {[b, ' ', d]})", f"$records('{a}{sep}{d}', [])"]
    name = draw.pick("fields", "records_text", "csv_lines")
    return write_module(draw, name, f"Lines about {thing.many}.", _FIELDS, slots, probes)


FAMILIES: dict[str, Family] = {
    "key_values": key_values,
    "range_list": range_list,
    "version_order": version_order,
    "span_parser": span_parser,
    "split_fields": split_fields,
}
