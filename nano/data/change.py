"""The difference between two versions of a file, as an edit and in words."""

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass

_TOKEN = re.compile(r"""[f]?"[^"]*"|\w+|\s+|[<>=!*/+-]+|.""")
_SHORT = 60
_VERBS = {
    "wrong_comparison": "compares with",
    "wrong_operator": "calculates with",
    "wrong_logic": "joins its conditions with",
    "wrong_method": "calls",
    "wrong_variable": "uses",
    "wrong_exception": "raises",
    "negated_condition": "has the condition",
    "swapped_arguments": "passes",
    "wrong_default": "has the default",
}


@dataclass(frozen=True)
class Change:
    """Lines `start` (from 0) and after of a file are `old` and become `new`; one of the two may be empty."""

    start: int
    old: tuple[str, ...]
    new: tuple[str, ...]


def find_change(before: str, after: str) -> Change:
    """The one run of lines in which two texts differ."""
    old, new = before.split("\n"), after.split("\n")
    start = _common(old, new)
    end = _common(old[start:][::-1], new[start:][::-1])
    return Change(start, tuple(old[start : len(old) - end]), tuple(new[start : len(new) - end]))


def write_edits(text: str, change: Change) -> list[tuple[str, str]]:
    """Pairs of `old` and `new` that make the change, from the shortest to the one whose `old` occurs once in `text`.

    Lines before the change are added one by one. A change that only adds or only removes lines holds the line before
    it that has text, so that there is something to replace, and that something stays.
    """
    lines = text.split("\n")
    first = change.start
    if not change.old or not change.new:
        first = max(at for at in range(first) if lines[at].strip())
    pairs = []
    while True:
        lead = lines[first : change.start]
        pairs.append(("\n".join([*lead, *change.old]), "\n".join([*lead, *change.new])))
        if text.count(pairs[-1][0]) == 1 or first == 0:
            return pairs
        first -= 1


def describe(kind: str, function: str, change: Change) -> str:
    """What is wrong, in one sentence that names the function and the words to change. `kind` is that of the bug."""
    if not change.old:
        return f"`{function}` lacks `{change.new[0].strip()}`."
    if not change.new:
        return f"`{function}` should not have `{change.old[0].strip()}`."
    old, new = _differing(change)
    if (old, new) == ("", "return "):
        return f"`{function}` does not return its result."
    verb = _VERBS.get(kind, "has")
    if max(len(old), len(new)) > _SHORT:
        return f"`{function}` has a wrong line."
    return f"`{function}` {verb} `{old}` where it should be `{new}`."


def enclosing_function(text: str, line: int) -> str:
    """The name of the innermost function that `line` (from 0) of a source lies in, or else of the last one before it:
    behind a deletion at a function's end there is only what follows the function.
    """
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
    begun = [node for node in functions if node.lineno - 1 <= line]
    around = [node for node in begun if line < (node.end_lineno or 0)]
    return max(around or begun, key=lambda node: node.lineno).name


def _differing(change: Change) -> tuple[str, str]:
    """What differs in the first differing line, with the tokens around that make it an expression or an operator."""
    pairs = zip(change.old, change.new, strict=False)
    before, after = next(((one, other) for one, other in pairs if one != other), (change.old[-1], change.new[-1]))
    old, new = _TOKEN.findall(before), _TOKEN.findall(after)
    start = _common(old, new)
    end = _common(old[start:][::-1], new[start:][::-1])
    if "".join(new[start : len(new) - end]) == "return " and len(old) - end == start:
        return "", "return "
    while start and not all(_begins(tokens[start : len(tokens) - end]) for tokens in (old, new)):
        start -= 1
    while end and not all(_ends(tokens[start : len(tokens) - end]) for tokens in (old, new)):
        end -= 1
    return "".join(old[start : len(old) - end]).strip(), "".join(new[start : len(new) - end]).strip()


def _begins(tokens: Sequence[str]) -> bool:
    """Whether these tokens of a line are something that can be named: not nothing, nor the rest of an expression."""
    return bool(tokens) and bool(tokens[0].strip()) and tokens[0] not in set("[](){}.,:")


def _ends(tokens: Sequence[str]) -> bool:
    """Whether an expression may end with these tokens of a line."""
    return bool(tokens) and bool(tokens[-1].strip()) and tokens[-1] not in ("if", "not")


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    """How many elements both begin with."""
    count = 0
    for left, right in zip(one, other, strict=False):
        if left != right:
            break
        count += 1
    return count
