"""What a reward model is, and what its scores must be."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

from llm_env.episode import Episode

RewardFunction: TypeAlias = Callable[[list[str], list[str]], Sequence[float]]
"""Scores responses: takes prompts and responses, two lists of texts, and returns one float for each response."""
RewardSource: TypeAlias = str | RewardFunction | Sequence[Any]
"""A reward model's name, a function, or a list of such or of ``[reward model, weight]``; see `llm_env.reward.models`."""


class RewardModelError(RuntimeError):
    """A reward model failed, or returned something that is not one finite number for each response."""


class RewardModel(Protocol):
    """What scores episodes."""

    def score(self, episodes: Sequence[Episode]) -> list[float]:
        """One finite score for each finished episode, in their order."""


def checked_scores(values: Any, count: int, name: str, option: str = "reward_model") -> list[float]:
    """Makes sure of one finite float for each response.

    Args:
        values: What the reward model returned.
        count: Number of responses that it was asked about.
        name: The reward model's name, for error messages.
        option: The option that the name came from, for error messages.

    Raises:
        RewardModelError: a wrong count, something that is not a number, NaN or infinity.
    """
    try:
        scores = [float(v) for v in values]
    except (TypeError, ValueError) as error:
        raise RewardModelError(
            f"{option}={name!r} must return one float for each response; it returned {values!r:.120}."
        ) from error
    if len(scores) != count:
        raise RewardModelError(f"{option}={name!r} returned {len(scores)} scores for {count} responses.")
    for i, value in enumerate(scores):
        if not math.isfinite(value):
            raise RewardModelError(
                f"{option}={name!r} returned {value} for response {i} of {count}; scores must be finite."
            )
    return scores
