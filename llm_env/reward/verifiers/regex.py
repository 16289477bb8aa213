"""The verifier ``regex``: the response matches a regular expression."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llm_env.reward.verifiers.base import Verifier


@dataclass(frozen=True)
class RegexVerifier(Verifier):
    """1 where the response matches, else 0. A pattern that backtracks without end is stopped by ``reward_timeout`` alone.

    Attributes:
        pattern: A regular expression of Python's `re`.
        column: Column with one for each prompt, in the place of `pattern`.
        whole: Whether the whole response has to match, without spaces around it; else any part of it.
        ignore_case: Whether capital and small letters are the same.
    """

    pattern: str = ""
    column: str = ""
    whole: bool = False
    ignore_case: bool = False

    def __post_init__(self) -> None:
        """Checks the options."""
        if bool(self.pattern) == bool(self.column):
            raise ValueError("needs a pattern, or a column that has one for each prompt.")
        if self.pattern:
            self._compiled(self.pattern, "pattern")

    @property
    def columns(self) -> tuple[str, ...]:
        """See `Verifier.columns`."""
        return (self.column,) if self.column else ()

    def check(self, record: Mapping[str, Any]) -> None:
        """See `Verifier.check`."""
        if self.column:
            self._compiled(record[self.column], self.column)

    def score(self, response: str, record: Mapping[str, Any]) -> float:
        """See `Verifier.score`."""
        pattern = self._compiled(record[self.column] if self.column else self.pattern, "pattern")
        return float(bool(pattern.fullmatch(response.strip()) if self.whole else pattern.search(response)))

    def _compiled(self, pattern: Any, name: str) -> re.Pattern[str]:
        try:
            return re.compile(pattern, re.IGNORECASE if self.ignore_case else 0)
        except (re.error, TypeError, OverflowError, RecursionError) as error:
            raise ValueError(f"{name}={pattern!r:.80} is no regular expression ({error})") from error
