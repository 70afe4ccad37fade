"""Kinds of bug that change one expression: each finder yields (start, end, new text) for every place in a function."""

import ast
import re
from collections.abc import Callable, Iterator

from harness.starter.generate.scope import Scope

Edit = tuple[int, int, str]
Finder = Callable[[Scope], Iterator[Edit]]

_COMPARISONS = {ast.Lt: ("<", "<="), ast.LtE: ("<=", "<"), ast.Gt: (">", ">="), ast.GtE: (">=", ">")}
_OPERATORS: dict[type[ast.operator], tuple[str, tuple[str, ...]]] = {
    ast.Add: ("+", ("-",)),
    ast.Sub: ("-", ("+",)),
    ast.Mult: ("*", ("+",)),
    ast.FloorDiv: ("//", ("%",)),
    ast.Mod: ("%", ("//",)),
    ast.Div: ("/", ("*", "//")),
}
_METHODS = {
    "lstrip": "rstrip",
    "rstrip": "lstrip",
    "strip": "rstrip",
    "startswith": "endswith",
    "endswith": "startswith",
    "removeprefix": "removesuffix",
    "removesuffix": "removeprefix",
    "upper": "lower",
    "lower": "upper",
    "find": "rfind",
    "rfind": "find",
    "split": "rsplit",
    "rsplit": "split",
    "partition": "rpartition",
    "rpartition": "partition",
    "ljust": "rjust",
    "rjust": "ljust",
    "keys": "values",
    "items": "keys",
    "isdigit": "isalpha",
    "isalpha": "isdigit",
    "capitalize": "upper",
    "append": "extend",
    "extend": "append",
    "popleft": "pop",
    "appendleft": "append",
}
_FUNCTIONS = {
    "min": "max",
    "max": "min",
    "any": "all",
    "all": "any",
    "sorted": "list",
    "sum": "len",
    "reversed": "list",
    "ceil": "floor",
    "floor": "ceil",
}
_UNORDERED = (ast.Sub, ast.Div, ast.FloorDiv, ast.Mod)
_ATOMS = (ast.Name, ast.Constant, ast.Attribute, ast.Call, ast.Subscript, ast.JoinedStr)


def _between(scope: Scope, left: ast.expr, right: ast.expr, old: str, new: str) -> Edit | None:
    """The edit of the operator `old` between two operands."""
    start, end = scope.span(left)[1], scope.span(right)[0]
    match = re.search(rf"(?<![<>=!*/]){re.escape(old)}(?![=*/])", scope.source[start:end])
    return (start + match.start(), start + match.end(), new) if match else None


def wrong_comparison(scope: Scope) -> Iterator[Edit]:
    """`<` for `<=` and the like."""
    for node in scope.nodes:
        if isinstance(node, ast.Compare):
            operands = [node.left, *node.comparators]
            for operator, left, right in zip(node.ops, operands, operands[1:], strict=False):
                old, new = _COMPARISONS.get(type(operator), ("", ""))
                if old and (edit := _between(scope, left, right, old, new)):
                    yield edit


def wrong_operator(scope: Scope) -> Iterator[Edit]:
    """`+` for `-` and the like, in expressions and in `+=`."""
    for node in scope.nodes:
        if isinstance(node, ast.BinOp):
            old, others = _OPERATORS.get(type(node.op), ("", ()))
            for new in others:
                if edit := _between(scope, node.left, node.right, old, new):
                    yield edit
        elif isinstance(node, ast.AugAssign) and isinstance(node.op, ast.Add | ast.Sub):
            start, end = scope.span(node.target)[1], scope.span(node.value)[0]
            yield start, end, " -= " if isinstance(node.op, ast.Add) else " += "


def wrong_logic(scope: Scope) -> Iterator[Edit]:
    """`and` for `or`, `or` for `and`."""
    for node in scope.nodes:
        if isinstance(node, ast.BoolOp):
            old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
            if len(node.values) == 2 and (edit := _between(scope, node.values[0], node.values[1], old, new)):
                yield edit


def off_by_one(scope: Scope) -> Iterator[Edit]:
    """An integer constant that is one too large or too small; bounds of slices and ranges are `wrong_bound`."""
    bounds = {id(each) for node in scope.nodes for each in _bounds(node)}
    for node in scope.nodes:
        if isinstance(node, ast.Constant) and type(node.value) is int and id(node) not in bounds:
            start, end = scope.span(node)
            if scope.source[start:end] != str(node.value):
                continue
            yield start, end, str(node.value + 1)
            if node.value > 0:
                yield start, end, str(node.value - 1)


def _bounds(node: ast.AST) -> list[ast.expr]:
    if isinstance(node, ast.Subscript):
        parts = [node.slice.lower, node.slice.upper] if isinstance(node.slice, ast.Slice) else [node.slice]
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "range":
        parts = list(node.args[:2])
    else:
        parts = []
    return [each for part in parts if part is not None for each in ast.walk(part) if isinstance(each, ast.expr)]


def wrong_bound(scope: Scope) -> Iterator[Edit]:
    """An index, or the bound of a slice or range, that is one off or at the other end."""
    for node in scope.nodes:
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Slice):
            targets = [part for part in (node.slice.lower, node.slice.upper) if part is not None]
        elif isinstance(node, ast.Subscript) and not isinstance(node.slice, ast.Tuple):
            targets = [node.slice] if _is_integer(node.slice) else []
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "range":
            targets = list(node.args[:2])
        else:
            continue
        for target in targets:
            yield from _shift(scope, target)


def _is_integer(node: ast.expr) -> bool:
    value = node.operand if isinstance(node, ast.UnaryOp) else node
    return isinstance(value, ast.Constant) and type(value.value) is int


def _shift(scope: Scope, target: ast.expr) -> Iterator[Edit]:
    start, end = scope.span(target)
    text = scope.text(target)
    if _is_integer(target):
        value = int(ast.literal_eval(target))
        yield from ((start, end, str(new)) for new in (value + 1, value - 1) if (new < 0) == (value < 0))
        if value in (0, -1):
            yield start, end, str(-1 - value)
    elif isinstance(target, ast.BinOp) and _is_integer(target.right) and text.endswith(" 1"):
        yield start, end, scope.text(target.left)
    elif isinstance(target, ast.Name | ast.Attribute | ast.Call):
        yield start, end, f"{text} + 1"
        yield start, end, f"{text} - 1"


def swapped_arguments(scope: Scope) -> Iterator[Edit]:
    """Two neighbouring positional arguments of a call in the wrong order."""
    for node in scope.nodes:
        if isinstance(node, ast.Call):
            yield from (_swap(scope, *pair) for pair in zip(node.args, node.args[1:], strict=False))


def swapped_operands(scope: Scope) -> Iterator[Edit]:
    """The operands of an operator that is not commutative, or of a comparison, in the wrong order."""
    for node in scope.nodes:
        if isinstance(node, ast.BinOp):
            left, right = node.left, node.right
            ordered = isinstance(node.op, _UNORDERED) or (isinstance(node.op, ast.Add) and _is_text(left, right))
        elif isinstance(node, ast.Compare) and len(node.ops) == 1 and isinstance(node.ops[0], ast.Lt | ast.Gt):
            left, right, ordered = node.left, node.comparators[0], True
        else:
            continue
        if ordered and isinstance(left, _ATOMS) and isinstance(right, _ATOMS):
            yield _swap(scope, left, right)


def _is_text(*operands: ast.expr) -> bool:
    return any(
        isinstance(each, ast.JoinedStr) or (isinstance(each, ast.Constant) and isinstance(each.value, str))
        for each in operands
    )


def _swap(scope: Scope, left: ast.expr, right: ast.expr) -> Edit:
    (start, middle), (after, end) = scope.span(left), scope.span(right)
    return start, end, scope.text(right) + scope.source[middle:after] + scope.text(left)


def wrong_method(scope: Scope) -> Iterator[Edit]:
    """A method or built-in function that does the opposite or nearly the same."""
    for node in scope.nodes:
        if not isinstance(node, ast.Call):
            continue
        start, end = scope.span(node.func)
        if isinstance(node.func, ast.Attribute) and node.func.attr in _METHODS:
            yield end - len(node.func.attr), end, _METHODS[node.func.attr]
        elif isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS:
            yield start, end, _FUNCTIONS[node.func.id]


def negated_condition(scope: Scope) -> Iterator[Edit]:
    """A condition that holds exactly when it should not."""
    for node in scope.nodes:
        if isinstance(node, ast.If | ast.While | ast.IfExp):
            yield _negate(scope, node.test)
        elif isinstance(node, ast.comprehension):
            yield from (_negate(scope, test) for test in node.ifs)
        elif isinstance(node, ast.Return) and isinstance(node.value, ast.Compare):
            yield _negate(scope, node.value)


_OPPOSITES: dict[type[ast.cmpop], tuple[str, str]] = {
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
    ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"),
    ast.Lt: ("<", ">="),
    ast.LtE: ("<=", ">"),
    ast.Gt: (">", "<="),
    ast.GtE: (">=", "<"),
}


def _negate(scope: Scope, test: ast.expr) -> Edit:
    start, end = scope.span(test)
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        return start, end, scope.text(test.operand)
    if isinstance(test, ast.Compare) and len(test.ops) == 1:
        old, new = _OPPOSITES[type(test.ops[0])]
        if edit := _between(scope, test.left, test.comparators[0], old, new):
            return edit
    text = scope.text(test)
    simple = isinstance(test, ast.Name | ast.Attribute | ast.Call | ast.Subscript)
    return start, end, f"not {text}" if simple else f"not ({text})"


def wrong_variable(scope: Scope) -> Iterator[Edit]:
    """Another variable of the function, or another attribute of the object, in place of the right one."""
    loads = [node for node in scope.nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)]
    stores = {node.id for node in scope.nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    arguments = [each.arg for each in (*scope.node.args.args, *scope.node.args.kwonlyargs) if each.arg != "self"]
    local = sorted({*arguments, *stores})
    for node in loads:
        if node.id in local:
            yield from ((*scope.span(node), other) for other in local if other != node.id)
    attributes = [
        node
        for node in scope.nodes
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
    ]
    known = _attributes(scope.owner)
    for attribute in attributes:
        if attribute.attr in known:
            yield from ((*scope.span(attribute), f"self.{other}") for other in known if other != attribute.attr)


def _attributes(owner: ast.ClassDef | None) -> list[str]:
    """Names that the class assigns on self."""
    return sorted(
        {
            node.attr
            for node in (ast.walk(owner) if owner else ())
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
        }
    )


EXPRESSION_BUGS: dict[str, Finder] = {
    "wrong_comparison": wrong_comparison,
    "wrong_operator": wrong_operator,
    "wrong_logic": wrong_logic,
    "off_by_one": off_by_one,
    "wrong_bound": wrong_bound,
    "swapped_arguments": swapped_arguments,
    "swapped_operands": swapped_operands,
    "wrong_method": wrong_method,
    "negated_condition": negated_condition,
    "wrong_variable": wrong_variable,
}
