"""A calculator, the example of a tool."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable

_OPERATORS: dict[type[ast.operator | ast.unaryop], Callable[..., float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
MOST_CHARACTERS = 200


class Calculator:
    """The four operations, on numbers of any size."""

    def calculate(self, expression: str) -> str:
        """Computes an arithmetic expression.

        Args:
            expression: Numbers, the signs + - * / // %, and parentheses, for example "54 + 10".
        """
        if len(expression) > MOST_CHARACTERS:
            raise ValueError(f"at most {MOST_CHARACTERS} characters")
        value = _value(ast.parse(expression.strip().replace("×", "*").replace("÷", "/"), mode="eval").body)
        return str(int(value)) if float(value).is_integer() else f"{value:.10g}"


def _value(node: ast.expr) -> float:
    """The value of a parsed expression, of numbers and the four operations alone: nothing is executed."""
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return node.value  # type: ignore[return-value]
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_value(node.left), _value(node.right))
    if isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_value(node.operand))
    raise ValueError("only numbers and + - * / // % ( )")
