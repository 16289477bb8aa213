"""The verifier ``length``: the response is not too short and not too long."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llm_env.lm.names import check_choice
from llm_env.reward.verifiers.base import Verifier
from llm_env.reward.verifiers.counts import COUNTS
from llm_env.rules import whole


@dataclass(frozen=True)
class LengthVerifier(Verifier):
    """1 where the response is as long as it should be, else 0.

    Attributes:
        least: Least number of units.
        most: Largest number of units; 0: no limit.
        unit: words, characters, sentences, lines or paragraphs.
    """

    least: int = 0
    most: int = 0
    unit: str = "words"

    def __post_init__(self) -> None:
        """Checks the options."""
        check_choice("unit", self.unit, tuple(COUNTS))
        for name in ("least", "most"):
            whole(0).check(name, getattr(self, name))
        if not (self.least or self.most):
            raise ValueError("needs least or most.")
        if self.most and self.most < self.least:
            raise ValueError(f"most={self.most} must be at least least={self.least}.")

    def score(self, response: str, record: Mapping[str, Any]) -> float:
        """See `Verifier.score`."""
        count = COUNTS[self.unit](response)
        return float(count >= self.least and (not self.most or count <= self.most))
