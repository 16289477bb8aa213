"""Token generation as a Gymnasium environment.

Importing this package registers ``LLMText-v0`` and loads neither torch nor transformers; ``gymnasium.make`` does.

    >>> import gymnasium as gym, llm_env
    >>> env = gym.make("LLMText-v0")
"""

from __future__ import annotations

import gymnasium

__version__ = "0.1.0"
ENV_ID = "LLMText-v0"

if ENV_ID not in gymnasium.registry:
    gymnasium.register(
        id=ENV_ID,
        entry_point="llm_env.env:LLMTextEnv",
        vector_entry_point="llm_env.vector_env:LLMTextVectorEnv",
    )

__all__ = ["ENV_ID", "__version__"]
