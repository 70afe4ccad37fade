"""From nodes to numbers."""

import math
import operator
from collections.abc import Callable, Mapping

from calcexpr.errors import ExpressionError
from calcexpr.nodes import Binary, Call, Name, Negative, Node, Number
from calcexpr.parser import parse

OPERATORS: dict[str, Callable[[float, float], float]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "%": operator.mod,
    "**": operator.pow,
}

FUNCTIONS: dict[str, Callable[..., float]] = {
    "abs": abs,
    "max": max,
    "min": min,
    "round": round,
    "sqrt": math.sqrt,
}


def evaluate(source: str, names: Mapping[str, float] | None = None) -> float:
    """The value of the expression `source`, where `names` gives the values of its names."""
    return _value(parse(source), names or {})


def _value(node: Node, names: Mapping[str, float]) -> float:
    if isinstance(node, Number):
        return node.value
    if isinstance(node, Name):
        if node.name not in names:
            raise ExpressionError(f"unknown name {node.name!r}")
        return names[node.name]
    if isinstance(node, Negative):
        return -_value(node.operand, names)
    if isinstance(node, Call):
        if node.function not in FUNCTIONS:
            raise ExpressionError(f"unknown function {node.function!r}")
        return _apply(FUNCTIONS[node.function], [_value(argument, names) for argument in node.arguments])
    return _apply(OPERATORS[node.operator], [_value(node.left, names), _value(node.right, names)])


def _apply(function: Callable[..., float], values: list[float]) -> float:
    try:
        return function(*values)
    except (ArithmeticError, TypeError, ValueError) as error:
        raise ExpressionError(str(error)) from error
