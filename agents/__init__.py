"""stable-baselines3 on top of `llm_env`: policy, buffer, VecEnv, and a factory that wires them.

>>> from agents import make_algorithm
>>> model = make_algorithm("ppo", env="LLMText-v0", n_envs=64)
>>> model.learn(64 * 32 * 40)
"""

from __future__ import annotations

import importlib
from typing import Any

_EXPORTS = {
    "LLMActorCriticPolicy": "agents.policies.actor_critic",
    "LLMTextVecEnv": "agents.rollouts.vec_env",
    "TextMetricsCallback": "agents.callbacks.metrics",
    "TokenRolloutBuffer": "agents.rollouts.buffer",
    "make_algorithm": "agents.algorithms.factory",
}
__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'agents' has no attribute {name!r}")
