"""Numbers in texts, as people and language models write them: ``$1,234.50``, ``10 000``, ``-3``, ``1/2``, ``50%``."""

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
_MINUS = re.compile(r"[\u2010-\u2013\u2212]")
"""What is written for a minus beside the hyphen of ASCII: other hyphens, the en dash, the minus sign."""
_BEFORE_NUMBER = re.compile(r"(\\[A-Za-z]+|\b(?:AUD|CAD|CHF|CNY|EUR|GBP|INR|JPY|RM|Rs|USD))(?=[-+.]?[0-9])")
r"""Letters after which a number begins, though no space stands between: LaTeX's commands (``\approx3``), currencies."""
_NUMBER = re.compile(
    r"""
    (?P<name>(?:(?<![0-9])[xX]|[A-WYZa-wyz])[0-9]+(?:\.[0-9]+)?)  # the digit of H2O, CO2, x1; not that of 3x5
    |(?P<formula>
        (?:\\sqrt\s*(?:\[[^][]*\]\s*)?|√\s*)(?:PART|\([^()]*\)|[0-9.]*)
        |\\[dtc]?frac\s*PART\s*PART           # of others than whole numbers, as \frac{\sqrt{2}}{2}
    )
    |(?P<sign>(?<![\w)\].])[-+])?              # not the minus of 5-3
    (?P<currency>[$€£¥]\s?)?
    (?P<inner>(?<=[$€£¥])[-+])?               # $-5
    (?:(?P<mixed>[0-9]+)\s+(?=[0-9]+\s*/\s*[0-9]))?
    (?P<number>
        (?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])  # 1,234,567
        # 1 234 567, by plain, no-break or thin spaces; not in 2024 100 or 1 200 35
        |(?<![0-9]\ )[1-9][0-9]{0,2}(?P<space>[ \u00a0\u2009\u202f])[0-9]{3}(?:(?P=space)[0-9]{3})*(?!\ ?[0-9])
        |[0-9]+)
        (?:\.[0-9]+)?
        |(?<![0-9])\.[0-9]+
    )
    (?P<exponent>[eE][-+]?[0-9]{1,3}(?![0-9]))?
    (?P<power>\s*\^\s*\{?\s*[-+]?[0-9]+\s*\}?|[⁰¹²³⁴-⁹]+)?
    (?:\s*/\s*(?P<denominator>[0-9]+)(?![0-9.]))?
    (?P<percent>\s*%)?
    """.replace("PART", r"\{(?:[^{}]|\{[^{}]*\})*\}"),
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
    """The last number of a text; None where there is none, or a power, a root or another formula stands in its place."""
    quantity = None
    for match in _NUMBER.finditer(_without_latex(text)):
        quantity = quantity if match["name"] else match
    return None if quantity is None else _quantity(quantity)


def _quantity(match: re.Match[str]) -> Quantity | None:
    if len(match[0]) > _MOST_CHARACTERS or match["formula"] is not None or match["power"] is not None:
        return None
    value = Fraction(Decimal(re.sub(r"[,\s]", "", match["number"]) + (match["exponent"] or "")))
    if match["denominator"] is not None:
        if not int(match["denominator"]):
            return None
        value /= int(match["denominator"])
    value += int(match["mixed"] or 0)
    if "-" in (match["sign"], match["inner"]):
        value = -value
    return Quantity(value, match["percent"] is not None)


def _without_latex(text: str) -> str:
    r"""A text with ``\frac{1}{2}`` as ``1/2`` and ``-`` for a minus, without LaTeX's spaces and backslashes, units' powers."""
    text = _MINUS.sub("-", text).replace("{,}", ",").replace(r"\$", "$").replace(r"\%", "%")
    text = _UNIT_POWER.sub("", re.sub(r"\\[,!;:]", "", text))
    # A space, so that 3\frac{1}{2} becomes 3 1/2.
    text = _LATEX_FRACTION.sub(lambda m: f"{' ' * _follows_digit(m)}{m[1] or m[3]}/{m[2] or m[4]}", text)
    return _BEFORE_NUMBER.sub(lambda m: m[1] if m[1] == r"\sqrt" else f"{m[1]} ", text)


def _follows_digit(match: re.Match[str]) -> bool:
    return match.string[: match.start()][-1:].isdigit()
