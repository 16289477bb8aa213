"""The gold function: a score that nobody trains on, which tells whether the reward model's score means what it should."""

from __future__ import annotations

from llm_env.reward.limits import CallLimits
from llm_env.reward.models import load_text_reward
from llm_env.reward.scores import TextReward


def load_gold(name: str | None, limits: CallLimits | None = None) -> TextReward | None:
    """Loads a gold function.

    Args:
        name: ``package.module:function`` of (prompts, responses) and of the columns that it names, a verifier, the address of a
            reward server, a language judge, or None.
        limits: How long a call may take, and for how long one that fails is repeated.

    Returns:
        What gives one finite score for each response, or raises RewardModelError; None for None.

    Raises:
        ValueError: there is no such module or function, or the address is malformed.
    """
    return None if name is None else load_text_reward(name, "gold", limits)
