"""Numbers in texts, as people and language models write them: ``$1,234.50``, ``-3``, ``4.0``, ``1/2``, ``3 1/2``, ``50%``."""

from __future__ import annotations

import re
from decimal import Decimal
from fractions import Fraction
from typing import NamedTuple

_MOST_CHARACTERS = 100
"""Longer ones are no numbers: whole numbers of thousands of digits take long to read."""
_LATEX_FRACTION = re.compile(r"\\[dtc]?frac\s*(?:\{\s*([+-]?[0-9]+)\s*\}\s*\{\s*([0-9]+)\s*\}|([0-9])\s*([0-9]))")
_UNIT_POWER = re.compile(r"(?<=[A-Za-z}])\s*\^\s*(?:\{\s*[-+−]?[0-9]+\s*\}|[-+−]?[0-9]+)")
"""The exponent of a letter or a word: of a unit, as in m^2."""
_NUMBER = re.compile(
    r"""
    (?P<sign>(?<![\w)\].])[-+])?              # not the minus of 5-3
    (?P<currency>[$€£¥]\s?)?
    (?P<inner>(?<=[$€£¥])[-+])?               # $-5
    (?:(?P<mixed>[0-9]+)\s+(?=[0-9]+\s*/\s*[0-9]))?
    (?P<number>
        (?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])  # 1,234,567
        |[0-9]+)
        (?:\.[0-9]+)?
        |(?<![0-9])\.[0-9]+
    )
    (?P<exponent>[eE][-+]?[0-9]{1,3}(?![0-9]))?
    (?P<power>\s*\^\s*\{?\s*[-+]?[0-9]+\s*\}?|[⁰¹²³⁴-⁹]+)?
    (?:\s*/\s*(?P<denominator>[0-9]+)(?![0-9.]))?
    (?P<percent>\s*%)?
    """,
    re.VERBOSE,
)


class Quantity(NamedTuple):
    """A number as it is written.

    Attributes:
        value: The number; of ``50%`` it is 50.
        percent: Whether a percent sign follows it.
    """

    value: Fraction
    percent: bool = False

    def equals(self, other: Quantity, tolerance: float) -> bool:
        """Whether both are the same number; where one alone has a percent sign, 50% is 50 and is 0.5 too.

        Args:
            other: The number to compare with.
            tolerance: Largest difference, as a share of the other's absolute value where that is above 1.
        """
        values = {self.value, self.value / 100} if self.percent and not other.percent else {self.value}
        others = {other.value, other.value / 100} if other.percent and not self.percent else {other.value}
        limit = Fraction(tolerance)
        return any(abs(a - b) <= limit * max(Fraction(1), abs(b)) for a in values for b in others)


def last_number(text: str) -> Quantity | None:
    """The last number of a text; None where there is none."""
    quantity = None
    for match in _NUMBER.finditer(_without_latex(text)):
        quantity = match
    return None if quantity is None else _quantity(quantity)


def _quantity(match: re.Match[str]) -> Quantity | None:
    if len(match[0]) > _MOST_CHARACTERS or match["power"] is not None:
        return None
    value = Fraction(Decimal(match["number"].replace(",", "") + (match["exponent"] or "")))
    if match["denominator"] is not None:
        if not int(match["denominator"]):
            return None
        value /= int(match["denominator"])
    value += int(match["mixed"] or 0)
    if "-" in (match["sign"], match["inner"]):
        value = -value
    return Quantity(value, match["percent"] is not None)


def _without_latex(text: str) -> str:
    r"""A text with ``\frac{1}{2}`` as ``1/2``, and without LaTeX's spaces and backslashes in numbers, and units' powers."""
    text = text.replace("−", "-").replace("{,}", ",").replace(r"\$", "$").replace(r"\%", "%")
    text = _UNIT_POWER.sub("", re.sub(r"\\[,!;:]", "", text))
    # A space, so that 3\frac{1}{2} becomes 3 1/2.
    return _LATEX_FRACTION.sub(lambda m: f"{' ' * _follows_digit(m)}{m[1] or m[3]}/{m[2] or m[4]}", text)


def _follows_digit(match: re.Match[str]) -> bool:
    return match.string[: match.start()][-1:].isdigit()
