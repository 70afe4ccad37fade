"""Helpers of command-line programs."""

from harness.starter.generate.draw import Draw
from harness.starter.generate.family import Family, Module, steps, write_module

_FLAGS = '''
def $parse(arguments: list[str]) -> dict[str, str]:
    """$doc"""
    options = {}
    for index, argument in enumerate(arguments):
        if argument == "--":
            break
        if not argument.startswith("--"):
            continue
        name, equals, text = argument[2:].partition("=")
        if not name:
            raise ValueError(f"argument {index} has no name")
        options[name] = text if equals else "yes"
    return options


def $plain(arguments: list[str]) -> list[str]:
    """The arguments that are no options; all that follow a double dash are none."""
    if "--" in arguments:
        cut = arguments.index("--")
        return $plain(arguments[:cut]) + arguments[cut + 1:]
    return [argument for argument in arguments if not argument.startswith("--")]


def $level(options: dict[str, str]) -> int:
    """How much to print: 0 if quiet, 2 if verbose, else $default."""
    if "quiet" in options:
        return 0
    return 2 if "verbose" in options else $default
'''


def flag_parser(draw: Draw) -> Module:
    """Options of a command line."""
    thing = draw.thing()
    slots = {
        "parse": draw.glue(("parse", "read", "scan"), (thing.one,), ("options", "flags", "arguments")),
        "plain": draw.glue(("plain", "other", "free"), (thing.one,), ("arguments", "words")),
        "level": draw.glue((thing.one,), ("level", "volume", "loudness")),
        "default": 1,
        "doc": draw.pick(
            f"The options of a command about {thing.many}, up to a double dash; those without a text are yes.",
            "Options such as --name=text as a dict of names and texts.",
        ),
    }
    a, b, c, d = draw.words(4)
    n = draw.number(1, 99)
    lines = [
        [f"--{a}={n}", b, f"--{c}"],
        [b, "--", f"--{a}"],
        [],
        [f"--{a}={b}={c}"],
        ["--=" + b],
        [d, f"--{d}=", c],
        [f"-{a}", f"--{b}"],
    ]
    probes = [f"$parse({line})" for line in lines] + [f"$plain({line})" for line in lines[:4]]
    probes += [f"$plain({[a, '--', '--', b]})", "$level({})", "$level({'quiet': 'yes'})", "$level({'verbose': 'yes'})"]
    probes += ["$level({'verbose': 'yes', 'quiet': 'yes'})", f"$level({{'{a}': 'yes'}})"]
    name = draw.pick("flags", "arguments", "command_line")
    return write_module(draw, name, f"Options about {thing.many}.", _FLAGS, slots, probes)


_PAGES = '''
def $page(lines: list[str], number: int, $size: int = $default) -> list[str]:
    """$doc"""
    if number < 1:
        raise ValueError("pages are counted from 1")
    start = (number - 1) * $size
    return lines[start:start + $size]


def $count(total: int, $size: int = $default) -> int:
    """How many pages there are; an empty list has one."""
    return max(1, (total + $size - 1) // $size)


def $footer(number: int, total: int) -> str:
    """The line below a page, with a hint if there are more."""
    pages = $count(total)
    text = f"page {number} of {pages}"
    if number < pages:
        text += f", {pages - number} more"
    return text
'''


def page_slices(draw: Draw) -> Module:
    """Pages of a long output."""
    thing = draw.thing()
    default = draw.number(2, 4)
    slots = {
        "page": draw.glue((thing.one,), ("page", "screen", "sheet")),
        "count": draw.glue((thing.one,), ("page_count", "screens", "pages")),
        "footer": draw.glue((thing.one,), ("footer", "status", "bottom")),
        "size": draw.pick("size", "height", "per_page"),
        "default": default,
        "doc": draw.pick(
            f"The lines about {thing.many} on one page, the first page being 1.",
            f"One page of the lines, {default} to a page by default.",
        ),
    }
    words = draw.words(default * 2 + 1)
    probes = [f"$page({words}, {number})" for number in (1, 2, 3, 4, 0)] + [f"$page({words}, 2, 1)"]
    probes += [f"$page({words[:3]}, 1, $size=2)"]
    probes += [f"$count({total})" for total in (0, default, default + 1, default * 3)] + [f"$count({default * 5}, 5)"]
    probes += [
        f"$footer(1, {default * 3})",
        f"$footer(2, {default * 2})",
        "$footer(1, 0)",
        f"$footer(2, {default * 4})",
    ]
    name = draw.pick("paging", "screens", "sheets")
    return write_module(draw, name, f"Pages of {thing.many}.", _PAGES, slots, probes)


_COMMANDS = '''
class $Table:
    """$doc"""

    def __init__(self) -> None:
        self._help: dict[str, str] = {}
        self._short: dict[str, str] = {}

    def $add(self, name: str, help: str, short: str = "") -> None:
        """Make a command known; raises ValueError if there is one of that name."""
        if name in self._help:
            raise ValueError(f"{name} is taken")
        self._help[name] = help
        if short:
            self._short[short] = name

    def $find(self, word: str) -> str:
        """The command that a word means: its name, its short form, or the only one that starts so."""
        name = self._short.get(word, word)
        if name in self._help:
            return name
        found = [each for each in self._help if each.startswith(word)]
        if len(found) != 1:
            raise LookupError(f"{len(found)} commands for {word}")
        return found[0]

    def $lines(self) -> list[str]:
        """The help, one line for each command, by name."""
        width = max((len(name) for name in self._help), default=0)
        return [f"{name.ljust(width)}  {self._help[name]}" for name in sorted(self._help)]
'''


def command_table(draw: Draw) -> Module:
    """Commands with short forms."""
    thing = draw.thing()
    slots = {
        "Table": draw.camel((thing.one,), ("commands", "menu", "console", "shell")),
        "add": draw.pick("add", "define", "register"),
        "find": draw.pick("find", "resolve", "lookup"),
        "lines": draw.glue((thing.one, "help"), ("lines", "overview", "text")),
        "doc": draw.pick(f"The commands of a program about {thing.many}.", f"A menu of commands for {thing.many}."),
    }
    var = draw.pick("menu", "table")
    a, b, c = draw.sample(["list", "load", "remove", "rename", "show", "save", "copy", "count"], 3)
    new = f"{var} = $Table()"
    one = f"{var}.$add('{a}', 'first', '{a[0]}')"
    two = f"{var}.$add('{b}', 'second')"
    three = f"{var}.$add('{c}', 'third', short='x')"
    probes = [
        steps(new, one, call=f"{var}.$find('{a}')"),
        steps(new, one, two, call=f"{var}.$find('{a[0]}')"),
        steps(new, one, two, call=f"{var}.$find('{b[:3]}')"),
        steps(new, one, three, call=f"{var}.$find('x')"),
        steps(new, two, call=f"{var}.$find('{c}s')"),
        steps(new, two, three, call=f"{var}.$find('')"),
        steps(new, one, call=one),
        steps(new, one, call=f"{var}.$add('{b}', 'second')"),
        steps(new, one, two, three, call=f"{var}.$lines()"),
        steps(new, call=f"{var}.$lines()"),
        steps(new, two, call=f"{var}.$lines()"),
        steps(new, two, call=f"{var}.$find('{b[0]}')"),
    ]
    name = draw.pick("commands", "menu", "console")
    return write_module(draw, name, f"Commands about {thing.many}.", _COMMANDS, slots, probes)


FAMILIES: dict[str, Family] = {
    "flag_parser": flag_parser,
    "page_slices": page_slices,
    "command_table": command_table,
}
