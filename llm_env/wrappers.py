"""Wrappers for people with a training loop of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import VectorWrapper
from numpy.typing import NDArray

LogProb = Callable[[dict[str, NDArray[np.int64]], Any], Any]


class PolicyKLReward(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Adds -β·log π(a|s) to the reward, which makes it the full KL-regularised reward of `LLMText-v0`.

    Args:
        env: A (wrapped) `LLMTextEnv`.
        log_prob: Function of the observation acted upon and the action, which returns log π(a|s) in nats under the
            policy that sampled it, at the environment's temperature.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], log_prob: LogProb) -> None:
        super().__init__(env)
        self.log_prob = log_prob
        self._observation: Any = None

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """As the environment's."""
        self._observation, info = self.env.reset(**kwargs)
        return self._observation, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """As the environment's, with the full reward."""
        own = float(self.log_prob(self._observation, action))
        self._observation, reward, terminated, truncated, info = self.env.step(action)
        kl_coef = self.env.unwrapped.task.kl_coef  # type: ignore[attr-defined]
        return self._observation, float(reward) - kl_coef * own, terminated, truncated, info


class VectorPolicyKLReward(VectorWrapper):
    """`PolicyKLReward` for `gymnasium.make_vec`: `log_prob` takes and returns batches, shape (N,)."""

    def __init__(self, env: gymnasium.vector.VectorEnv[Any, Any, Any], log_prob: LogProb) -> None:
        super().__init__(env)
        self.log_prob = log_prob
        self._observation: Any = None

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """As the environment's."""
        self._observation, info = self.env.reset(**kwargs)
        return self._observation, info

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """As the environment's, with the full rewards."""
        own = np.asarray(self.log_prob(self._observation, actions), dtype=np.float64)
        self._observation, rewards, terminated, truncated, infos = self.env.step(actions)
        kl_coef = self.env.unwrapped.task.kl_coef  # type: ignore[attr-defined]
        return self._observation, rewards - kl_coef * own, terminated, truncated, infos
