"""Token generation as a Gymnasium environment.

Importing this package registers ``LLMText-v0`` and loads neither torch nor transformers; ``gymnasium.make`` does, and so
does the first use of one of the classes here.

    >>> import gymnasium as gym, llm_env
    >>> env = gym.make("LLMText-v0")
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import gymnasium

from llm_env.lazy import lazy_names

if TYPE_CHECKING:  # what `__getattr__` loads at the first use, for type checkers and editors
    from llm_env.env import LLMTextEnv
    from llm_env.episode import Episode
    from llm_env.reward.kl import KLPenalty
    from llm_env.reward.scores import RewardModel, RewardModelError
    from llm_env.settings import TaskSettings
    from llm_env.task import TextTask
    from llm_env.text.prompts import Prompt
    from llm_env.vector_env import LLMTextVectorEnv
    from llm_env.wrappers import PolicyKLReward, VectorPolicyKLReward

__version__ = "0.1.0"
ENV_ID = "LLMText-v0"
GUESS_ID = "GuessTheNumber-v0"

if ENV_ID not in gymnasium.registry:
    gymnasium.register(
        id=ENV_ID,
        entry_point="llm_env.env:LLMTextEnv",
        vector_entry_point="llm_env.vector_env:LLMTextVectorEnv",
    )

if GUESS_ID not in gymnasium.registry:  # a world, for gymnasium.make(ENV_ID, world=GUESS_ID)
    gymnasium.register(id=GUESS_ID, entry_point="llm_env.guess_the_number.world:GuessTheNumber")

_MODULES = {
    "LLMTextEnv": "llm_env.env",
    "LLMTextVectorEnv": "llm_env.vector_env",
    "TaskSettings": "llm_env.settings",
    "TextTask": "llm_env.task",
    "Episode": "llm_env.episode",
    "Prompt": "llm_env.text.prompts",
    "KLPenalty": "llm_env.reward.kl",
    "RewardModel": "llm_env.reward.scores",
    "RewardModelError": "llm_env.reward.scores",
    "PolicyKLReward": "llm_env.wrappers",
    "VectorPolicyKLReward": "llm_env.wrappers",
}

__all__ = [
    "ENV_ID",
    "GUESS_ID",
    "Episode",
    "KLPenalty",
    "LLMTextEnv",
    "LLMTextVectorEnv",
    "PolicyKLReward",
    "Prompt",
    "RewardModel",
    "RewardModelError",
    "TaskSettings",
    "TextTask",
    "VectorPolicyKLReward",
    "__version__",
]

__getattr__, __dir__ = lazy_names(__name__, _MODULES)
