"""Kinds of bug that change or lose a statement, a default or an exception; finders as in `expression_bugs`."""

import ast
from collections.abc import Iterator

from harness.starter.generate.expression_bugs import Edit, Finder
from harness.starter.generate.scope import Scope

_GUARD_LINES = 3
_EXCEPTIONS = {
    "ValueError": ("TypeError", "KeyError"),
    "KeyError": ("IndexError", "ValueError"),
    "IndexError": ("KeyError", "ValueError"),
    "TypeError": ("ValueError",),
    "RuntimeError": ("ValueError",),
    "LookupError": ("ValueError",),
}
_SEPARATORS = {" ": "", ", ": ",", ",": " ", "-": "_", "_": "-", ":": "=", "=": ":", ";": ",", ".": ",", "": " "}


def wrong_default(scope: Scope) -> Iterator[Edit]:
    """A parameter's default value that is not what the docstring promises."""
    arguments = scope.node.args
    for default in (*arguments.defaults, *(each for each in arguments.kw_defaults if each is not None)):
        if not isinstance(default, ast.Constant):
            continue
        start, end = scope.span(default)
        if isinstance(default.value, bool):
            yield start, end, str(not default.value)
        elif isinstance(default.value, int):
            yield start, end, str(default.value + 1)
            yield start, end, str(abs(default.value - 1))
        elif isinstance(default.value, str):
            yield start, end, f'"{_SEPARATORS.get(default.value, "")}"'


def lost_return(scope: Scope) -> Iterator[Edit]:
    """A `return` that is gone: the value is computed and dropped."""
    for block in scope.blocks:
        for statement in block:
            if not isinstance(statement, ast.Return) or statement.value is None:
                continue
            if isinstance(statement.value, ast.Name) and len(block) > 1:
                yield (*scope.lines(statement), "")
            elif not isinstance(statement.value, ast.Name | ast.Constant):
                start, _ = scope.span(statement)
                yield start, start + len("return "), ""


def wrong_exception(scope: Scope) -> Iterator[Edit]:
    """Another exception raised or caught than the right one."""
    for node in scope.nodes:
        if isinstance(node, ast.Raise):
            target = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
        else:
            target = node.type if isinstance(node, ast.ExceptHandler) else None
        if isinstance(target, ast.Name):
            yield from ((*scope.span(target), other) for other in _EXCEPTIONS.get(target.id, ()))


def missing_guard(scope: Scope) -> Iterator[Edit]:
    """An `if` that returns, raises or goes on early is missing."""
    for block in scope.blocks:
        for statement in block:
            if not isinstance(statement, ast.If) or statement.orelse or len(block) < 2:
                continue
            leaves = isinstance(statement.body[-1], ast.Return | ast.Raise | ast.Continue | ast.Break)
            short = (statement.end_lineno or 0) - statement.lineno < _GUARD_LINES
            if leaves and short and _is_if(scope, statement):
                yield (*scope.lines(statement), "")


def _is_if(scope: Scope, statement: ast.stmt) -> bool:
    """An `elif` is a statement of its own to the parser, not to the reader."""
    start, _ = scope.span(statement)
    return scope.source.startswith("if ", start)


def missing_update(scope: Scope) -> Iterator[Edit]:
    """A statement that keeps a counter, a cache or a list up to date is missing."""
    for block in scope.blocks:
        for statement in block:
            if len(block) > 1 and _updates(statement):
                yield (*scope.lines(statement), "")


def _updates(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.AugAssign | ast.Delete):
        return True
    if isinstance(statement, ast.Assign):
        return all(isinstance(target, ast.Attribute | ast.Subscript) for target in statement.targets)
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call)


STATEMENT_BUGS: dict[str, Finder] = {
    "wrong_default": wrong_default,
    "lost_return": lost_return,
    "wrong_exception": wrong_exception,
    "missing_guard": missing_guard,
    "missing_update": missing_update,
}
