"""The adaptive KL coefficient: β rises while the policy is further from the reference than wanted, and falls while nearer."""

from __future__ import annotations

import math

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from agents.callbacks.metrics import TextMetricsCallback
from agents.rollouts.vec_env import text_env

MOST_ERROR = 0.2


def adapted_kl_coef(kl_coef: float, kl: float, target: float, gain: float) -> float:
    """The next β: β (1 + K e), e = clip((KL - target) / target, -0.2, 0.2).

    Ziegler et al. 2019, section 2.2 (https://arxiv.org/abs/1909.08593), where K is 0.1.

    Args:
        kl_coef: β, in score per nat.
        kl: Mean over responses of the sum over their tokens, in nats: not the mean per token.
        target: The same, wanted.
        gain: K.
    """
    error = min(MOST_ERROR, max(-MOST_ERROR, kl / target - 1))
    return kl_coef * (1 + gain * error)


class AdaptiveKL(BaseCallback):
    """Moves the coefficient of the environment's KL penalty after each rollout, for the rollouts that follow.

    Args:
        metrics: Measures the KL; must stand before this callback.
        target: KL to hold, in nats per response.
        gain: K. At the paper's 0.1 β moves by 2 % a rollout at most, which suits thousands of them; runs of some fifty
            need about 1.

    Raises:
        ValueError: target or gain is not above 0.
    """

    def __init__(self, metrics: TextMetricsCallback, target: float, gain: float = 0.1) -> None:
        super().__init__()
        for name, value in (("kl_target", target), ("kl_gain", gain)):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name}={value} must be a finite number above 0.")
        if gain * MOST_ERROR >= 1:
            raise ValueError(f"kl_gain={gain} must be below {1 / MOST_ERROR:g}: beta would fall to 0 and stay there.")
        self.metrics = metrics
        self.target = target
        self.gain = gain

    def _on_training_start(self) -> None:
        if text_env(self.training_env).task.kl.coef <= 0:
            raise ValueError("kl_target needs a kl_coef above 0 to start from: it is multiplied.")
        if isinstance(self.model, OffPolicyAlgorithm):
            raise ValueError(
                f"kl_target: the backup of {type(self.model).__name__} is made for one beta, its q_scale; if the "
                "environment's moved alone, the optimum would no longer be the fixed point. Leave kl_target out."
            )

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        kl = self.metrics.last.get("rollout/kl", math.nan)
        if math.isfinite(kl):  # at least one response ended
            penalty = text_env(self.training_env).task.kl
            penalty.coef = adapted_kl_coef(penalty.coef, kl, self.target, self.gain)
