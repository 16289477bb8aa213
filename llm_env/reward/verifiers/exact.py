"""The verifier ``exact``: the response's answer is the text that a column has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llm_env.reward.verifiers.answers import check_place, find_answer
from llm_env.reward.verifiers.base import Verifier


@dataclass(frozen=True)
class ExactVerifier(Verifier):
    """1 where the response's answer is the column's text, or one of its texts, else 0.

    Spaces around and between words do not count, and nor does a full stop at the end.

    Attributes:
        column: Has the right answer: a text, a number, or a list of answers that are all right.
        extract: Where the answer is looked for, as in `llm_env.reward.verifiers.answers.find_answer`. With ``auto``, a response
            that marks no answer is the answer.
        ignore_case: Whether capital and small letters are the same.
    """

    column: str = "answer"
    extract: str = "auto"
    ignore_case: bool = False

    def __post_init__(self) -> None:
        """Checks the options."""
        check_place(self.extract)

    @property
    def columns(self) -> tuple[str, ...]:
        """See `Verifier.columns`."""
        return (self.column,)

    def check(self, record: Mapping[str, Any]) -> None:
        """See `Verifier.check`."""
        value = record[self.column]
        answers = value if isinstance(value, list) else [value]
        usable = all(isinstance(a, str | int | float) and self._compared(str(a)) for a in answers)
        if not answers or not usable:
            raise ValueError(f"{self.column}={value!r:.80} is no answer: a text, a number, or a list of them")

    def score(self, response: str, record: Mapping[str, Any]) -> float:
        """See `Verifier.score`."""
        answer = find_answer(response, self.extract)
        if answer is None and self.extract == "auto":
            answer = response
        value = record[self.column]
        rights = value if isinstance(value, list) else [value]
        return float(answer is not None and self._compared(answer) in {self._compared(str(r)) for r in rights})

    def _compared(self, text: str) -> str:
        text = " ".join(text.split()).removesuffix(".").rstrip()
        return text.casefold() if self.ignore_case else text
