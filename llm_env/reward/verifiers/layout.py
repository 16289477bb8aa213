"""The verifier ``format``: the response is made of the wanted tags, one after the other."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llm_env.reward.verifiers.base import Verifier


@dataclass(frozen=True)
class FormatVerifier(Verifier):
    """1 where the response is ``<think>…</think><answer>…</answer>`` with nothing but spaces around, else 0.

    Each tag stands once, in this order, with something in it.

    Attributes:
        tags: Names of the tags in their order, with commas between them.
    """

    tags: str = "think,answer"

    def __post_init__(self) -> None:
        """Checks the options."""
        named = all(re.fullmatch(r"[A-Za-z][\w-]*", name) for name in self._names)
        if not named or len(set(self._names)) < len(self._names):
            raise ValueError(f"tags={self.tags!r} must be different names with commas between them, as think,answer.")

    @property
    def _names(self) -> list[str]:
        return self.tags.split(",")

    def score(self, response: str, record: Mapping[str, Any]) -> float:
        """See `Verifier.score`."""
        once = all(response.count(f"<{n}>") == response.count(f"</{n}>") == 1 for n in self._names)
        whole = r"\s*".join(rf"<{n}>.*?\S.*?</{n}>" for n in self._names)
        return float(once and re.fullmatch(whole, response.strip(), re.DOTALL) is not None)
