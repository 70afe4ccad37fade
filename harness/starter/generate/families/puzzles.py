"""Families that training never sees."""

from harness.starter.generate.draw import Draw
from harness.starter.generate.family import Family, Module, write_module

_ROMAN = '''
SIGNS = [(1000, "M"), (900, "CM"), (500, "D"), (400, "CD"), (100, "C"), (90, "XC"), (50, "L"), (40, "XL")]
SMALL = [(10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I")]


def $write(number: int) -> str:
    """$doc"""
    if number <= 0 or number >= 4000:
        raise ValueError("no Roman numeral")
    text = ""
    for value, sign in SIGNS + SMALL:
        while number >= value:
            text += sign
            number -= value
    return text


def $read(text: str) -> int:
    """The number that a Roman numeral stands for."""
    values = {sign: value for value, sign in SIGNS + SMALL}
    total = 0
    for index, sign in enumerate(text):
        value = values[sign]
        if index + 1 < len(text) and values[text[index + 1]] > value:
            total -= value
        else:
            total += value
    return total
'''


def roman_numerals(draw: Draw) -> Module:
    """Roman numerals, both ways."""
    thing = draw.thing()
    slots = {
        "write": draw.glue(("write", "print", "format"), ("roman", "latin"), (thing.one,)),
        "read": draw.glue(("read", "parse", "scan"), ("roman", "latin"), (thing.one,)),
        "doc": draw.pick("The number in Roman numerals, from 1 to 3999.", "Write a number the Roman way."),
    }
    numbers = [draw.number(1, 40), draw.number(41, 400), draw.number(401, 3999), 4, 9]
    texts = ["IV", "XIX", "MCMXC", "XII", "DCL"]
    probes = [f"{slots['write']}({number})" for number in (*numbers, 3999, 4000, 0)]
    probes += [f"{slots['read']}('{text}')" for text in texts]
    return write_module(draw, draw.pick("roman", "numerals"), f"Roman numbers of {thing.many}.", _ROMAN, slots, probes)


_BRACKETS = '''
PAIRS = {")": "(", "]": "[", "}": "{"}


def $balanced(text: str) -> bool:
    """$doc"""
    waiting: list[str] = []
    for char in text:
        if char in PAIRS.values():
            waiting.append(char)
        elif char in PAIRS:
            if not waiting or waiting.pop() != PAIRS[char]:
                return False
    return not waiting


def $depth(text: str) -> int:
    """How deep the round brackets are nested; -1 if one is closed that is not open."""
    deepest = 0
    depth = 0
    for char in text:
        if char == "(":
            depth += 1
            deepest = max(deepest, depth)
        elif char == ")":
            depth -= 1
            if depth < 0:
                return -1
    return deepest
'''


def bracket_depth(draw: Draw) -> Module:
    """Brackets."""
    thing = draw.thing()
    slots = {
        "balanced": draw.glue((thing.one,), ("balanced", "closed", "matched")),
        "depth": draw.glue((thing.one,), ("depth", "nesting", "layers")),
        "doc": draw.pick("Whether every bracket is closed by the right one.", "Whether the brackets match."),
    }
    a, b = draw.words(2)
    texts = (f"({a})", f"({a}[{b}])", f"({a}[{b})]", f"{a})", f"[{b}", "", f"{{{a}}}({b})")
    probes = [f"$balanced('{text}')" for text in texts]
    deep = (f"({a})", f"(({a})({b}))", f"{a}", f"({a}))", f")({b}", f"((({b})", f"({a})({b})")
    probes += [f"$depth('{text}')" for text in deep]
    return write_module(draw, draw.pick("brackets", "nesting"), f"Brackets of {thing.many}.", _BRACKETS, slots, probes)


_BASES = '''
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


def $write(number: int, base: int = $default) -> str:
    """$doc"""
    if base < 2 or base > len(DIGITS):
        raise ValueError("no such base")
    if number < 0:
        return "-" + $write(-number, base)
    text = DIGITS[number % base]
    while number >= base:
        number //= base
        text = DIGITS[number % base] + text
    return text


def $read(text: str, base: int = $default) -> int:
    """The number that a text means in this base."""
    result = 0
    for char in text.lower():
        digit = DIGITS.index(char)
        if digit >= base:
            raise ValueError(f"no digit: {char}")
        result = result * base + digit
    return result
'''


def base_digits(draw: Draw) -> Module:
    """Numbers in other bases."""
    thing = draw.thing()
    default = draw.pick(2, 8, 16, 36)
    slots = {
        "write": draw.glue(("write", "encode", "show"), (thing.one,), ("digits", "code", "base")),
        "read": draw.glue(("read", "decode", "parse"), (thing.one,), ("digits", "code", "base")),
        "default": default,
        "doc": draw.pick(f"A number in another base, {default} by default.", "The digits of a number in this base."),
    }
    n = draw.number(40, 900)
    probes = [f"$write({number})" for number in (n, 0, default, default - 1, -n)]
    probes += [f"$write({n}, 3)", f"$write({n}, 1)", f"$write({n}, 37)", f"$write({n}, 36)", f"$write({n}, base=10)"]
    probes += [
        "$read('101')",
        "$read('0')",
        "$read('12', 3)",
        "$read('13', 3)",
        "$read('Z', 36)",
        "$read('ff', base=16)",
    ]
    return write_module(draw, draw.pick("bases", "digits"), f"Codes of {thing.many}.", _BASES, slots, probes)


_GRAPH = '''
def $reach($links: dict[str, list[str]], start: str) -> list[str]:
    """$doc"""
    seen = [start]
    for place in seen:
        for other in $links.get(place, []):
            if other not in seen:
                seen.append(other)
    return sorted(seen[1:])


def $hops($links: dict[str, list[str]], start: str, goal: str) -> int:
    """The least number of links from start to goal; -1 if there is no way."""
    ring = {start}
    seen = set(ring)
    count = 0
    while ring:
        if goal in ring:
            return count
        ring = {other for place in ring for other in $links.get(place, [])} - seen
        seen |= ring
        count += 1
    return -1


def $sinks($links: dict[str, list[str]]) -> list[str]:
    """The places from which no link leads on, sorted."""
    return sorted(place for place, others in $links.items() if not others)
'''


def graph_reach(draw: Draw) -> Module:
    """Ways in a graph."""
    thing = draw.thing()
    slots = {
        "reach": draw.glue((thing.one,), ("reach", "followers", "reachable")),
        "hops": draw.glue((thing.one,), ("hops", "links_between", "way_length")),
        "sinks": draw.glue((thing.one,), ("sinks", "dead_ends", "ends")),
        "links": draw.pick("links", "edges", "ways"),
        "doc": draw.pick("All places that can be reached from the start, sorted.", "Where the links lead to."),
    }
    a, b, c, d, e = draw.words(5)
    links = {a: [b, c], b: [d], c: [a], d: [], e: [a]}
    probes = [f"$reach({links}, '{place}')" for place in (a, b, d, e)] + [f"$reach({{}}, '{a}')"]
    ways = ((a, d), (a, a), (d, a), (e, d), (c, b), (a, b))
    probes += [f"$hops({links}, '{start}', '{goal}')" for start, goal in ways]
    probes += [f"$sinks({links})", "$sinks({})", f"$sinks({{'{b}': [], '{a}': []}})"]
    return write_module(draw, draw.pick("network", "graph"), f"Ways between {thing.many}.", _GRAPH, slots, probes)


FAMILIES: dict[str, Family] = {
    "roman_numerals": roman_numerals,
    "bracket_depth": bracket_depth,
    "base_digits": base_digits,
    "graph_reach": graph_reach,
}
