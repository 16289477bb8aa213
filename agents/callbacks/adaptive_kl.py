"""The adaptive KL coefficient: β rises while the policy is further from the reference than wanted, and falls while nearer."""

from __future__ import annotations

import math

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from agents.callbacks.metrics import TextMetricsCallback
from agents.rollouts.vec_env import text_env
from agents.rules import check_arguments

MOST_ERROR = 0.2
"""Where the relative error of the KL is clipped, so that one rollout far off moves β by a share of K at most."""


def adapted_kl_coef(kl_coef: float, kl: float, target: float, gain: float) -> float:
    """Computes the next β: β (1 + K e), e = clip((KL - target) / target, -0.2, 0.2).

    Ziegler et al. 2019, section 2.2 (https://arxiv.org/abs/1909.08593), where K is 0.1.

    Args:
        kl_coef: β, in score per nat.
        kl: Measured KL in nats per response: the mean over responses of the sum over their tokens, not the mean per token.
        target: Wanted KL, in nats per response.
        gain: K, dimensionless.
    """
    error = min(MOST_ERROR, max(-MOST_ERROR, kl / target - 1))
    return kl_coef * (1 + gain * error)


def check_beta_may_move(model: BaseAlgorithm, setting: str) -> None:
    """Refuses an algorithm whose update knows β beside the environment.

    Args:
        model: The algorithm.
        setting: What would move β, for the error.

    Raises:
        ValueError: its backup is made for one β.
    """
    if isinstance(model, OffPolicyAlgorithm):
        raise ValueError(
            f"{setting}: the backup of {type(model).__name__} is made for one beta, its q_scale; if the environment's moved "
            f"alone, the optimum would no longer be the fixed point. Leave {setting} out."
        )


class AdaptiveKL(BaseCallback):
    """Moves the coefficient of the environment's KL penalty after each rollout, for the rollouts that follow.

    Args:
        metrics: The callback that measures the KL; must stand before this one in the list of callbacks.
        target: KL to hold, in nats per response.
        gain: K. At the paper's 0.1 β moves by 2 % a rollout at most, which suits thousands of them; runs of some fifty
            need about 1.

    Raises:
        ValueError: target or gain is not above 0, or the gain is so large that β could fall to 0. At the start of training: the
            environment's β is 0, or the algorithm's backup is made for one β.
    """

    def __init__(self, metrics: TextMetricsCallback, target: float, gain: float = 0.1) -> None:
        super().__init__()
        check_arguments({"kl_target": target, "kl_gain": gain})
        self.metrics = metrics
        self.target = target
        self.gain = gain

    def _init_callback(self) -> None:
        if text_env(self.training_env).task.kl.coef <= 0:
            raise ValueError("kl_target needs a kl_coef above 0 to start from: it is multiplied.")
        check_beta_may_move(self.model, "kl_target")

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        kl = self.metrics.last.get("rollout/kl", math.nan)
        if math.isfinite(kl):  # NaN or missing: no response ended in this rollout, so there is nothing to go by
            penalty = text_env(self.training_env).task.kl
            penalty.coef = adapted_kl_coef(penalty.coef, kl, self.target, self.gain)
