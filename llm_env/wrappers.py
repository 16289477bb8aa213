"""Wrappers for people with a training loop of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import VectorWrapper
from numpy.typing import NDArray

LogProb = Callable[[dict[str, NDArray[np.int64]], Any], Any]


class _PolicyKL:
    """What the two wrappers share: the last observation, and what the policy's part of the reward is."""

    env: Any

    def __init__(self, env: Any, log_prob: LogProb) -> None:
        # Of the estimators only k1 is a sum: -β·log π, which is added here, and β·log π_ref, which the environment pays.
        penalty = env.unwrapped.task.kl
        estimator = penalty.estimator
        if not penalty.in_reward:
            raise ValueError(
                f"kl_in={penalty.place!r}: the reward has no KL penalty that could be completed; use 'reward'."
            )
        if estimator != "k1":
            raise ValueError(
                f"kl_estimator={estimator!r} has no part that could be added to the reward afterwards; use 'k1'."
            )
        super().__init__(env)  # type: ignore[call-arg]  # of Wrapper or VectorWrapper, which come after this class
        self.log_prob = log_prob
        self._observation: Any = None

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """As the environment's."""
        self._observation, info = self.env.reset(**kwargs)
        return self._observation, info

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """As the environment's, with the full reward."""
        # Before the step: log π is of the observation acted upon. In nats, () for one environment, (N,) for a batch.
        log_probs = np.asarray(self.log_prob(self._observation, action), dtype=np.float64)
        self._observation, reward, terminated, truncated, info = self.env.step(action)
        full = reward - self.env.unwrapped.task.kl.coef * log_probs
        # A single environment's reward is a Python float, as Gymnasium's `Env.step` declares it.
        return self._observation, full if full.ndim else float(full), terminated, truncated, info


class PolicyKLReward(_PolicyKL, gymnasium.Wrapper[Any, Any, Any, Any]):
    """Adds -β·log π(a|s) to the reward, which makes it the full KL-regularized reward of `LLMText-v0`.

    Args:
        env: A (wrapped) `LLMTextEnv`.
        log_prob: Function of the observation acted upon and the action, which returns log π(a|s) in nats under the
            policy that sampled it, at the environment's temperature.
    """


class VectorPolicyKLReward(_PolicyKL, VectorWrapper):
    """`PolicyKLReward` for `gymnasium.make_vec`: `log_prob` takes and returns batches, shape (N,)."""
