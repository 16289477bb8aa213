"""What a verifier is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any


class Verifier(ABC):
    """Scores a response by a rule. Subclasses are frozen dataclasses: their fields are the options of ``verifier:NAME?…``."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that each prompt's record must have."""
        return ()

    def check(self, record: Mapping[str, Any]) -> None:  # noqa: B027
        """Makes sure, before anything is generated, that responses to a prompt can be scored.

        Args:
            record: The columns of the prompt's record; those of `columns` are there.

        Raises:
            ValueError: a column holds nothing that a response could be verified against; the error says what.
        """

    @abstractmethod
    def score(self, response: str, record: Mapping[str, Any]) -> float:
        """The score of a response, 0 to 1.

        Args:
            response: The response's text.
            record: The columns of the prompt's record.
        """
