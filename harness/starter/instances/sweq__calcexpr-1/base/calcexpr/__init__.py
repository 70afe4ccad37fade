"""Arithmetic expressions, parsed and evaluated."""

from calcexpr.errors import ExpressionError
from calcexpr.evaluator import evaluate
from calcexpr.parser import parse

__all__ = ["ExpressionError", "evaluate", "parse"]
