"""The verifier ``number``: the response's answer is the number that a column has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from llm_env.reward.verifiers.answers import check_place, find_answer
from llm_env.reward.verifiers.base import Verifier
from llm_env.reward.verifiers.quantities import Quantity, last_number
from llm_env.rules import number


@dataclass(frozen=True)
class NumberVerifier(Verifier):
    r"""1 where the response's number equals the column's, else 0.

    Currency signs, thousands separators and units are left aside: ``$1,234.00`` is 1234, ``12 apples`` and ``12 m^2`` are 12. A
    power or a root, as ``10^3`` or ``\sqrt{2}``, is no number here; `math` computes it. Nor is the digit of a name, as H2O.

    Attributes:
        column: Has the right number, as a number or as a text; of GSM8K's answers it is what follows ``####``.
        extract: Where the answer is looked for, as in `llm_env.reward.verifiers.answers.find_answer`. With ``auto``, a response
            that marks no answer gives its last number.
        tolerance: Largest difference, relative to the right number where that is above 1.
    """

    column: str = "answer"
    extract: str = "auto"
    tolerance: float = 1e-6

    def __post_init__(self) -> None:
        """Checks the options."""
        check_place(self.extract)
        number(least=0).check("tolerance", self.tolerance)

    @property
    def columns(self) -> tuple[str, ...]:
        """See `Verifier.columns`."""
        return (self.column,)

    def check(self, record: Mapping[str, Any]) -> None:
        """See `Verifier.check`."""
        self._right(record)

    def score(self, response: str, record: Mapping[str, Any]) -> float:
        """See `Verifier.score`."""
        text = find_answer(response, self.extract)
        if text is None and self.extract == "auto":
            text = response
        answer = None if text is None else last_number(text)
        return float(answer is not None and answer.equals(self._right(record), self.tolerance))

    def _right(self, record: Mapping[str, Any]) -> Quantity:
        """The right number.

        Raises:
            ValueError: there is none in the column.
        """
        value = record[self.column]
        if isinstance(value, int | float) and not isinstance(value, bool):
            return Quantity(Fraction(str(value)))  # as it is written: 0.1 is a tenth
        text = value if isinstance(value, str) else ""
        quantity = last_number(find_answer(text) or text)
        if quantity is None:
            raise ValueError(f"{self.column}={value!r:.80} has no number")
        return quantity
