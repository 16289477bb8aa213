"""The gold function: a score that nobody trains on, which tells whether the reward model's score means what it should."""

from __future__ import annotations

from agents.callbacks.metrics import GoldFunction
from llm_env.reward.models import FunctionReward


def load_gold(name: str | None) -> GoldFunction | None:
    """Loads a gold function.

    Args:
        name: ``package.module:function`` of (prompts, responses), or None.

    Returns:
        The function; None for None.

    Raises:
        ValueError: there is no such module or function.
    """
    return None if name is None else FunctionReward(name, "gold").function
