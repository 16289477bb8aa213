"""A calculator, the example of a tool."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from fractions import Fraction

_OPERATORS: dict[type[ast.operator | ast.unaryop], Callable[..., Fraction]] = {
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
    """The four operations, on numbers of any size, computed exactly; a result that is no whole number has 15 digits."""

    def calculate(self, expression: str) -> str:
        """Computes an arithmetic expression.

        Args:
            expression: Numbers, the signs + - * / // %, and parentheses, for example "54 + 10".
        """
        if len(expression) > MOST_CHARACTERS:
            raise ValueError(f"at most {MOST_CHARACTERS} characters")
        try:
            value = Fraction(
                _value(ast.parse(expression.strip().replace("×", "*").replace("÷", "/"), mode="eval").body)
            )
        except ZeroDivisionError as error:
            raise ZeroDivisionError("division by zero") from error
        return str(value.numerator) if value.denominator == 1 else f"{float(value):.15g}"


def _value(node: ast.expr) -> Fraction:
    """The value of a parsed expression, of numbers and the four operations alone: nothing is executed."""
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return Fraction(str(node.value))  # as it is written: 0.1 is a tenth
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_value(node.left), _value(node.right))
    if isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_value(node.operand))
    raise ValueError("only numbers and + - * / // % ( )")
