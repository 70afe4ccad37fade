"""A family's module: source text from a template, and probes of what it does."""

import ast
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from string import Template

from harness.starter.generate.draw import Draw

_WORD = re.compile(r"[A-Za-z_]\w*")


@dataclass(frozen=True)
class Probe:
    """One observation to make: simple statements, then an expression. Names of the module need no import here.

    Neither holds a double quote, a backslash or a character that a shell expands inside double quotes.
    """

    call: str
    setup: tuple[str, ...] = ()


@dataclass(frozen=True)
class Module:
    """One module of a package: `name` without `.py`, its correct `text`, and what to try on it."""

    name: str
    text: str
    probes: tuple[Probe, ...]
    about: str


Family = Callable[[Draw], Module]


def write_module(
    draw: Draw, name: str, about: str, template: str, slots: Mapping[str, object], probes: Sequence[Probe | str]
) -> Module:
    """Fill `$slots` into the template and the probes; `about` becomes the docstring.

    In plain style, annotations of functions go. A module without imports begins two lines below its docstring.
    """
    texts = {key: str(value) for key, value in slots.items()}
    text = Template(template).substitute(texts).strip("\n")
    text = f'"""{about}"""\n\n{text if text.startswith(("import", "from")) else chr(10) + text}\n'
    return Module(
        name=name,
        text=strip_annotations(text) if draw.plain else text,
        probes=tuple(_fill(probe if isinstance(probe, Probe) else Probe(probe), texts) for probe in probes),
        about=about,
    )


def _fill(probe: Probe, texts: Mapping[str, str]) -> Probe:
    setup = tuple(Template(line).substitute(texts) for line in probe.setup)
    return Probe(Template(probe.call).substitute(texts), setup)


def steps(*setup: str, call: str) -> Probe:
    """A probe with statements before its call."""
    return Probe(call, setup)


def public_names(text: str) -> list[str]:
    """Functions and classes that the module defines, in order."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    return [node.name for node in ast.parse(text).body if isinstance(node, kinds)]


def names_used(probe: Probe, known: Sequence[str]) -> list[str]:
    """Those of `known` that the probe mentions, sorted."""
    words = set(_WORD.findall("\n".join((*probe.setup, probe.call))))
    return sorted(name for name in known if name in words)


def subject_of(probe: Probe) -> str:
    """The function, method or class whose result the probe's expression shows: its outermost call."""
    node: ast.AST = ast.parse(probe.call, mode="eval").body
    while not isinstance(node, ast.Call):
        if isinstance(node, ast.Attribute | ast.Subscript):
            node = node.value
        elif isinstance(node, ast.List | ast.Tuple):
            node = node.elts[-1]
        elif isinstance(node, ast.ListComp):
            node = node.elt
        else:
            raise ValueError(f"no call in {probe.call!r}")
    if isinstance(node.func, ast.Name):
        inner = node.args[0] if node.args else node
        plain = node.func.id in {"list", "len", "sorted", "dict", "str"}
        return subject_of(Probe(ast.unparse(inner))) if plain else node.func.id
    assert isinstance(node.func, ast.Attribute)
    return node.func.attr


def strip_annotations(text: str) -> str:
    """The text without the annotations of parameters, results and attributes; dataclass fields keep theirs."""
    lines = text.split("\n")
    cuts: list[tuple[int, int, int, str]] = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            cuts += _signature_cuts(node, lines)
        elif isinstance(node, ast.AnnAssign) and not isinstance(node.target, ast.Name) and node.target.end_col_offset:
            end = node.annotation.end_col_offset or 0
            cuts.append((node.lineno - 1, node.target.end_col_offset, end, ""))
    for line, start, end, new in sorted(cuts, reverse=True):
        lines[line] = lines[line][:start] + new + lines[line][end:]
    return "\n".join(lines)


def _signature_cuts(node: ast.FunctionDef, lines: Sequence[str]) -> list[tuple[int, int, int, str]]:
    cuts = []
    for argument in (*node.args.args, *node.args.kwonlyargs):
        if argument.annotation is not None:
            line, end = argument.lineno - 1, argument.annotation.end_col_offset or 0
            spaced = lines[line].startswith(" = ", end)
            start = argument.col_offset + len(argument.arg)
            cuts.append((line, start, end + 3 * spaced, "=" * spaced))
    if node.returns is not None:
        end = node.returns.end_col_offset or 0
        line = node.returns.lineno - 1
        cuts.append((line, lines[line].rindex(" -> ", 0, end), end, ""))
    return cuts
