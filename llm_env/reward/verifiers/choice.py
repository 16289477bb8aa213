"""The verifier ``choice``: the response chooses the letter that a column has."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llm_env.reward.verifiers.answers import check_place, find_answer
from llm_env.reward.verifiers.base import Verifier

_LATEX_TEXT = re.compile(r"\\(?:text|mathrm|mathbf|textbf)\s*\{([^{}]*)\}")


@dataclass(frozen=True)
class ChoiceVerifier(Verifier):
    """1 where the response chooses the right letter, else 0.

    The chosen letter is looked for in the answer that the response marks; else it is the last of ``answer is B`` or
    ``answer: B``, else the last in parentheses, else the letter that the response begins with, as in ``B.`` or ``B) Paris``.
    A small letter before a further word is none: ``the answer is a cat``.

    Attributes:
        column: Has the right letter, or its place as a whole number from 0.
        letters: The letters that there are to choose from.
        extract: Where a marked answer is looked for, as in `llm_env.reward.verifiers.answers.find_answer`.
    """

    column: str = "answer"
    letters: str = "ABCD"
    extract: str = "auto"

    def __post_init__(self) -> None:
        """Checks the options."""
        check_place(self.extract)
        if not (self.letters.isascii() and self.letters.isalpha()) or len(set(self.letters.upper())) < 2:
            raise ValueError(f"letters={self.letters!r} must be at least two different letters.")

    @property
    def columns(self) -> tuple[str, ...]:
        """See `Verifier.columns`."""
        return (self.column,)

    def check(self, record: Mapping[str, Any]) -> None:
        """See `Verifier.check`."""
        self._right(record)

    def score(self, response: str, record: Mapping[str, Any]) -> float:
        """See `Verifier.score`."""
        return float(self._chosen(response) == self._right(record))

    def _right(self, record: Mapping[str, Any]) -> str:
        """The right letter, capital.

        Raises:
            ValueError: the column has none.
        """
        value, letters = record[self.column], self.letters.upper()
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(letters):
            return letters[value]
        letter = value.strip().strip("().").upper() if isinstance(value, str) else ""
        if len(letter) != 1 or letter not in letters:
            raise ValueError(f"{self.column}={value!r:.80} is none of {', '.join(letters)}, and no place of one from 0")
        return letter

    def _chosen(self, response: str) -> str | None:
        """The letter that a response chooses, capital; None where it chooses none."""
        letter = rf"([{self.letters.upper()}]|[{self.letters.lower()}](?![^\S\n]*\w))"
        marked = find_answer(response, self.extract)
        text = response if marked is None and self.extract == "auto" else marked or ""
        text = _LATEX_TEXT.sub(r"\1", text)
        end = r"(?![\w'])"
        for pattern in (
            rf"(?i:answer)[\s*]*(?i:is|:)[\s\"'*(\[:]*{letter}{end}",
            rf"\({letter}\)",
        ):
            if found := re.findall(pattern, text):
                return str(found[-1]).upper()
        found_first = re.match(rf"\W*{letter}(?:\s*$|[.):\]*])", text)
        return found_first[1].upper() if found_first else None
