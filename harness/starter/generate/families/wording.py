"""Titles, ciphers, prefixes and wrapped lines."""

from harness.starter.generate.draw import Draw
from harness.starter.generate.family import Family, Module, write_module

_SLUG = '''
def $slug(title: str, $sep: str = "$default") -> str:
    """$doc"""
    words = []
    current = ""
    for char in title.lower():
        if char.isalnum():
            current += char
        elif current:
            words.append(current)
            current = ""
    if current:
        words.append(current)
    return $sep.join(words)


def $free(name: str, taken: list[str]) -> str:
    """The name, or the name with the first number from 2 on that makes it new."""
    if name not in taken:
        return name
    number = 2
    while f"{name}$default{number}" in taken:
        number += 1
    return f"{name}$default{number}"


def $title(name: str, $sep: str = "$default") -> str:
    """The words of a name with capital letters."""
    return " ".join(word.capitalize() for word in name.split($sep))
'''


def slug_title(draw: Draw) -> Module:
    """Titles as parts of addresses."""
    thing = draw.thing()
    sep = draw.pick("-", "_")
    slots = {
        "slug": draw.glue((thing.one,), ("slug", "address", "link_name", "key")),
        "free": draw.glue(("free", "unused", "new"), (thing.one,), ("name", "slug", "key")),
        "title": draw.glue((thing.one,), ("title", "heading", "caption")),
        "sep": draw.pick("sep", "joint", "glue"),
        "default": sep,
        "doc": draw.pick(
            f"The title of a {thing.one} in lower case, with a separator for all that is no letter or digit.",
            "A title as part of an address: lower case, one separator between words and none at the ends.",
        ),
    }
    a, b, c = draw.words(3)
    n = draw.number(2, 40)
    texts = (f"{a.capitalize()} {b}", f"  {a}, {b} / {c}", f"{c.upper()} ({n})", "", f"{a}", f"{b} {n}.{n}")
    probes = [f"$slug('{text}')" for text in texts] + [f"$slug('{a} {c}', '.')", f"$slug('{b}+{c}', $sep='')"]
    probes += [f"$free('{a}', {taken})" for taken in ([], [a], [a, f"{a}{sep}2"], [b], [a, f"{a}{sep}3"])]
    probes += [f"$title('{a}{sep}{b}')", f"$title('{c}')", f"$title('{a}+{c}', '+')"]
    name = draw.pick("slugs", "titles", "addresses")
    return write_module(draw, name, f"Titles of {thing.many}.", _SLUG, slots, probes)


_SHIFT = '''
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def $shift(text: str, $key: int = $default) -> str:
    """$doc"""
    result = ""
    for char in text:
        index = LETTERS.find(char.lower())
        if index < 0:
            result += char
            continue
        other = LETTERS[(index + $key) % len(LETTERS)]
        result += other.upper() if char.isupper() else other
    return result


def $unshift(text: str, $key: int = $default) -> str:
    """The text that was shifted by so many letters."""
    return $shift(text, -$key)


def $mirror(text: str) -> bool:
    """Whether the letters read the same from both ends, whatever their case."""
    letters = [char.lower() for char in text if char.isalpha()]
    return letters == letters[::-1]
'''


def letter_shift(draw: Draw) -> Module:
    """A cipher."""
    thing = draw.thing()
    default = draw.number(2, 13)
    slots = {
        "shift": draw.glue(("shift", "encode", "hide", "move"), (thing.one,), ("letters", "text")),
        "unshift": draw.glue(("unshift", "decode", "reveal", "restore"), (thing.one,), ("letters", "text")),
        "mirror": draw.glue((thing.one,), ("mirror", "palindrome", "symmetric")),
        "key": draw.pick("key", "by", "offset"),
        "default": default,
        "doc": draw.pick(
            f"Each letter of the {thing.one} replaced by a later one of the alphabet; other signs stay.",
            "Move every letter along the alphabet, with a after z; upper case stays upper case.",
        ),
    }
    a, b, c = draw.words(3)
    probes = [
        f"$shift('{a}')",
        f"$shift('{b.capitalize()} {c}')",
        f"$shift('{c}', 1)",
        f"$shift('xyz', $key={default})",
    ]
    probes += [
        f"$shift('{a} 42')",
        "$shift('')",
        f"$shift('{b}', 0)",
        f"$unshift('{c}')",
        f"$unshift('{a.upper()}', 3)",
    ]
    probes += ["$unshift('abc')", "$mirror('Anna')", f"$mirror('{a}')", "$mirror('Never odd or even')", "$mirror('')"]
    probes += [f"$mirror('{b[:3]}{b[:3][::-1]}')", "$mirror('no')"]
    name = draw.pick("cipher", "letters", "secrets_of")
    return write_module(draw, name, f"Letters of {thing.many}.", _SHIFT, slots, probes)


_PREFIX = '''
def $prefix($many: list[str]) -> str:
    """$doc"""
    if not $many:
        return ""
    first, last = min($many), max($many)
    for index, char in enumerate(first):
        if index >= len(last) or last[index] != char:
            return first[:index]
    return first


def $shorten($many: list[str]) -> list[str]:
    """The names without the beginning that they share."""
    size = len($prefix($many))
    return [name[size:] for name in $many]


def $differences(one: str, other: str) -> int:
    """At how many places two texts differ; what one is longer counts, too."""
    places = sum(a != b for a, b in zip(one, other))
    return places + abs(len(one) - len(other))
'''


def common_prefix(draw: Draw) -> Module:
    """What names share."""
    thing = draw.thing()
    slots = {
        "prefix": draw.glue((thing.one, "common", "shared"), ("prefix", "beginning", "stem")),
        "shorten": draw.glue(("shorten", "strip", "cut"), (thing.many,)),
        "differences": draw.glue((thing.one,), ("differences", "changes", "distance")),
        "many": thing.many,
        "doc": draw.pick(
            f"The longest text with which all {thing.many} begin.",
            f"What the names of the {thing.many} have in common at their beginning.",
        ),
    }
    a, b, c = draw.words(3)
    lists: tuple[list[str], ...] = (
        [a + b, a + c],
        [a, a + b],
        [a, b, c],
        [],
        [b],
        [c + "1", c + "2", c + "13"],
        [a + "x", a + "xy", a],
    )
    probes = [f"$prefix({names})" for names in lists] + [f"$shorten({names})" for names in lists[:2]]
    probes += ["$shorten([])", f"$differences('{a}', '{a}')", f"$differences('{a}', '{b}')"]
    probes += [f"$differences('{a}', '{a}{b}')", f"$differences('{c}s', '{c}')", f"$differences('', '{b}')"]
    probes += [f"$differences('{a}', '{a[:-1]}x')"]
    name = draw.pick("prefixes", "names", "stems")
    return write_module(draw, name, f"Names of {thing.many}.", _PREFIX, slots, probes)


_WRAP = '''
def $wrap(text: str, width: int = $default) -> list[str]:
    """$doc"""
    lines = []
    line = ""
    for word in text.split():
        if line and len(line) + 1 + len(word) > width:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}" if line else word
    if line:
        lines.append(line)
    return lines


def $indent(lines: list[str], depth: int = $depth) -> list[str]:
    """The lines moved to the right; empty ones stay empty."""
    return [" " * depth + line if line else "" for line in lines]


def $longest(text: str) -> int:
    """How many signs the longest word has."""
    return max((len(word) for word in text.split()), default=0)
'''


def wrap_words(draw: Draw) -> Module:
    """Texts in lines."""
    thing = draw.thing()
    default, depth = draw.number(10, 20), draw.pick(2, 4)
    slots = {
        "wrap": draw.glue(("wrap", "fill", "flow"), (thing.one,), ("text", "words", "lines")),
        "indent": draw.glue(("indent", "move", "inset"), (thing.one,), ("lines", "text")),
        "longest": draw.glue(("longest", "widest"), (thing.one,), ("word", "term")),
        "default": default,
        "depth": depth,
        "doc": draw.pick(
            f"The text of a {thing.one} in lines that are not wider than the width, as far as words allow.",
            "Words put into lines of at most this width; a word is never cut.",
        ),
    }
    texts = [" ".join(draw.words(count)) for count in (4, 5, 3)]
    a, b = draw.words(2)
    exact = len(a) + 1 + len(b)
    probes = [f"$wrap('{texts[0]}')", f"$wrap('{texts[1]}', {draw.number(8, 14)})", f"$wrap('{a} {b}', {exact})"]
    probes += [f"$wrap('{a} {b}', {exact - 1})", "$wrap('')", f"$wrap('{texts[2]}', 1)", f"$wrap('{a}  {b} ', 40)"]
    probes += [f"$indent({[a, '', b]})", f"$indent({[b]}, 1)", "$indent([])", f"$indent({[a, b]}, depth=0)"]
    probes += [f"$longest('{texts[1]}')", "$longest('')", f"$longest('{a}')"]
    name = draw.pick("wrapping", "lines", "paragraphs")
    return write_module(draw, name, f"Texts of {thing.many}.", _WRAP, slots, probes)


FAMILIES: dict[str, Family] = {
    "slug_title": slug_title,
    "letter_shift": letter_shift,
    "common_prefix": common_prefix,
    "wrap_words": wrap_words,
}
