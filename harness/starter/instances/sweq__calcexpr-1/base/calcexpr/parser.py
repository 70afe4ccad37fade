"""From tokens to nodes: recursive descent, one method per level of precedence."""

from calcexpr.errors import ExpressionError
from calcexpr.nodes import Binary, Call, Name, Negative, Node, Number
from calcexpr.tokens import Token, tokenize


def parse(source: str) -> Node:
    """The tree of the expression `source`; raises `ExpressionError`."""
    parser = _Parser(source)
    node = parser.sum()
    parser.expect("end", "")
    return node


class _Parser:
    def __init__(self, source: str) -> None:
        self._tokens = list(tokenize(source))
        self._index = 0

    @property
    def token(self) -> Token:
        return self._tokens[self._index]

    def accept(self, *texts: str) -> Token | None:
        """The current operator if it is one of `texts`; it is then passed over."""
        token = self.token
        if token.kind != "operator" or token.text not in texts:
            return None
        self._index += 1
        return token

    def expect(self, kind: str, text: str) -> None:
        token = self.token
        if (token.kind, token.text) != (kind, text):
            found = repr(token.text) if token.text else "end"
            raise ExpressionError(f"expected {text or 'end'}, found {found}", token.position)
        self._index += 1

    def sum(self) -> Node:
        node = self.product()
        while operator := self.accept("+", "-"):
            node = Binary(operator.text, node, self.product())
        return node

    def product(self) -> Node:
        node = self.unary()
        while operator := self.accept("*", "/", "%"):
            node = Binary(operator.text, node, self.unary())
        return node

    def unary(self) -> Node:
        if self.accept("-"):
            return Negative(self.unary())
        if self.accept("+"):
            return self.unary()
        return self.power()

    def power(self) -> Node:
        node = self.atom()
        while self.accept("**"):
            node = Binary("**", node, self.atom())
        return node

    def atom(self) -> Node:
        token = self.token
        if self.accept("("):
            node = self.sum()
            self.expect("operator", ")")
            return node
        if token.kind == "number":
            self._index += 1
            return Number(float(token.text) if set(token.text) & set(".eE") else int(token.text))
        if token.kind == "name":
            self._index += 1
            return Call(token.text, self.arguments()) if self.accept("(") else Name(token.text)
        found = repr(token.text) if token.text else "end"
        raise ExpressionError(f"expected a value, found {found}", token.position)

    def arguments(self) -> tuple[Node, ...]:
        if self.accept(")"):
            return ()
        nodes = [self.sum()]
        while self.accept(","):
            nodes.append(self.sum())
        self.expect("operator", ")")
        return tuple(nodes)
