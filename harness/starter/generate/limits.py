"""Bounds on what generated code may make: by counts alone, so that they are the same on every machine.

A bug can turn a loop into one that doubles a list at every turn, or a factor into one of millions. Values that grow
from line to line are seen between lines (`size_in`); what one expression can make at once, `guard` rewrites so that it
is asked for first. Endless is raised in either case.
"""

import ast
import re
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Sized
from types import FrameType, FunctionType, ModuleType
from typing import Any

LARGEST = 1_000_000
"""Elements, characters or bits that one expression may make."""
_WORD = 64
_FEW = 64
_DEEP = 2
_FLAT = (str, bytes, bytearray, set, frozenset, range)
_ROWS = (list, tuple, deque)
_MAPS = (dict, defaultdict, OrderedDict, Counter)
_KINDS = frozenset((*_FLAT, *_ROWS, *_MAPS))
_NAMESPACES = (ModuleType, FunctionType, type)
_PADDING = ("ljust", "rjust", "center", "zfill", "expandtabs")
_SIGNS = re.compile(rf"""[\w"')\]}}]\s*\*|<<|:[^{{}}\n]*{{|\.({"|".join(_PADDING)})\(""")
"""Of what `_Guard` changes: operators behind an operand, widths that are expressions, and padding."""


class Endless(BaseException):
    """The code does more than any right one does. No `except Exception` of generated code takes it."""


def size_in(frame: FrameType) -> int:
    """Length of the longest value that a local variable holds, its elements and attributes included, two levels deep.

    Integers count by their 64-bit words, and elements only of containers with up to 64 of them.
    """
    return max((_size(value, _DEEP) for value in frame.f_locals.values()), default=0)


def _size(value: Any, depth: int) -> int:
    kind = type(value)
    inner: Any = ()
    own = 0
    if isinstance(value, int):
        own = value.bit_length() // _WORD
    elif isinstance(value, Sized) and kind in _KINDS:
        own = len(value)
        inner = value.values() if isinstance(value, dict) else () if kind in _FLAT else value
    elif isinstance(getattr(value, "__dict__", None), dict) and not isinstance(value, _NAMESPACES):
        inner = vars(value).values()
    if not depth or own > _FEW:
        return own
    return max((_size(each, depth - 1) for each in inner), default=own) if inner else own


def multiply(left: Any, right: Any) -> Any:
    """`left * right`."""
    factor(left, right)
    return left * right


def factor(left: Any, right: Any) -> Any:
    """`right`, by which `left` may be multiplied."""
    if isinstance(left, int) and isinstance(right, int):
        _allow(left.bit_length() + right.bit_length())
    elif isinstance(right, int) and hasattr(left, "__len__"):
        _allow(len(left) * right)
    elif isinstance(left, int) and hasattr(right, "__len__"):
        _allow(left * len(right))
    return right


def power(left: Any, right: Any) -> Any:
    """`left ** right`."""
    if isinstance(left, int) and isinstance(right, int):
        _allow(left.bit_length() * right)
    return left**right


def shift(left: Any, right: Any) -> Any:
    """`left << right`."""
    if isinstance(left, int) and isinstance(right, int):
        _allow(left.bit_length() + right)
    return left << right


def width(value: Any) -> Any:
    """`value`, to which a text may be padded."""
    if isinstance(value, int):
        _allow(value)
    return value


def short_range(*arguments: Any) -> range:
    """`range`, of so many elements as all could be made into a list."""
    made = range(*arguments)
    if made:
        _allow((made[-1] - made[0]) // made.step)
    return made


def _allow(size: int) -> None:
    if size > LARGEST:
        raise Endless


GUARDS = {
    "__multiply__": multiply,
    "__factor__": factor,
    "__power__": power,
    "__shift__": shift,
    "__width__": width,
    "range": short_range,
}
"""Built-in names that guarded code needs."""
_CALLS: dict[type[ast.operator], str] = {ast.Mult: "__multiply__", ast.Pow: "__power__", ast.LShift: "__shift__"}


def guard(text: str, mode: str) -> ast.Module | ast.Expression | str:
    """What to compile in place of `text`; it needs `GUARDS`. Lines, results and the texts of errors stay the same."""
    if not _SIGNS.search(text):
        return text
    tree: ast.Module | ast.Expression = _Guard().visit(ast.parse(text, mode=mode))
    return ast.fix_missing_locations(tree)


class _Guard(ast.NodeTransformer):
    """Calls of `GUARDS` in place of operators, and around widths."""

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        name = _CALLS.get(type(node.op))
        return _call(name, node, node.left, node.right) if name else node

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.AST:
        self.generic_visit(node)
        pure = not any(isinstance(each, ast.Call) for each in ast.walk(node.target))
        if isinstance(node.op, ast.Mult) and pure:
            before = ast.parse(ast.unparse(node.target), mode="eval").body
            node.value = _call("__factor__", node.value, before, node.value)
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.func, ast.Attribute) and node.func.attr in _PADDING and node.args:
            node.args[0] = _call("__width__", node.args[0], node.args[0])
        return node

    def visit_FormattedValue(self, node: ast.FormattedValue) -> ast.AST:
        self.generic_visit(node)
        inner = node.format_spec.values if isinstance(node.format_spec, ast.JoinedStr) else ()
        for each in inner:
            if isinstance(each, ast.FormattedValue):
                each.value = _call("__width__", each.value, each.value)
        return node


def _call(name: str, place: ast.AST, *arguments: ast.expr) -> ast.Call:
    called = ast.Call(ast.Name(name, ast.Load()), list(arguments), [])
    return ast.copy_location(called, place)
