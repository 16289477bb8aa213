"""Rounds of generating, ranking and training: iterated and online DPO, rejection sampling, iterated RLHF.

Importing this package loads no torch; the first use of `iterate` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agents.iteration.settings import IterationSettings

if TYPE_CHECKING:  # what `__getattr__` loads at the first use, for type checkers and editors
    from agents.iteration.rounds import iterate

__all__ = ["IterationSettings", "iterate"]


def __getattr__(name: str) -> Any:
    """Loads `iterate` at its first use."""
    if name != "iterate":
        raise AttributeError(f"module 'agents.iteration' has no attribute {name!r}; it has {', '.join(__all__)}.")
    from agents.iteration.rounds import iterate

    return iterate
