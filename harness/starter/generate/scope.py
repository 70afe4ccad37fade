"""What the kinds of bug ask about a function of the source."""

import ast
from dataclasses import dataclass, field
from itertools import accumulate

FunctionNode = ast.FunctionDef
Position = tuple[int, int]


@dataclass
class Scope:
    """One function of the source, with what the kinds of bug ask about it."""

    source: str
    node: FunctionNode
    owner: ast.ClassDef | None
    starts: list[int]
    nodes: list[ast.AST] = field(init=False)
    """Every node of the body, docstring and annotations apart."""
    blocks: list[list[ast.stmt]] = field(init=False)
    """Every list of statements in the body."""

    def __post_init__(self) -> None:
        body = self.node.body
        body = body[1:] if ast.get_docstring(self.node) is not None else body
        self.nodes = [node for statement in body for node in ast.walk(statement)]
        inner = (getattr(node, name, None) for node in self.nodes for name in ("body", "orelse"))
        self.blocks = [body, *(block for block in inner if isinstance(block, list) and block)]

    def span(self, node: ast.expr | ast.stmt | ast.arg) -> Position:
        """Offsets of the node's first character and of the one after its last."""
        return self.starts[node.lineno - 1] + node.col_offset, (
            self.starts[(node.end_lineno or 0) - 1] + (node.end_col_offset or 0)
        )

    def lines(self, first: ast.stmt, last: ast.stmt | None = None) -> Position:
        """Offsets of the whole lines of a statement, line ends included."""
        return self.starts[first.lineno - 1], self.starts[(last or first).end_lineno or 0]

    def text(self, node: ast.expr) -> str:
        """The node's source."""
        start, end = self.span(node)
        return self.source[start:end]


def read_scopes(source: str) -> list[Scope]:
    """Every function and method of an ASCII source."""
    starts = [0, *accumulate(len(line) + 1 for line in source.split("\n"))]
    tree = ast.parse(source)
    scopes = []
    for node in tree.body:
        if isinstance(node, FunctionNode):
            scopes.append(Scope(source, node, None, starts))
        elif isinstance(node, ast.ClassDef):
            scopes += [Scope(source, each, node, starts) for each in node.body if isinstance(each, FunctionNode)]
    return scopes
