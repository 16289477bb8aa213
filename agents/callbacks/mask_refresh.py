"""Masks that follow the policy: the learned masking of NLPO."""

from __future__ import annotations

from typing import cast

from stable_baselines3.common.callbacks import BaseCallback

from agents.policies.maskable import MaskableLLMPolicy
from agents.rollouts.vec_env import text_env
from agents.rules import check_arguments


class MaskRefresh(BaseCallback):
    """Takes the masks' top-k and top-p from a copy of the actor, brought up to date every few rollouts.

    This is the learned masking of NLPO (Ramamurthy et al. 2022, https://arxiv.org/abs/2210.01241). Without this callback the
    masks look at the reference.

    Args:
        every: Rollouts between refreshes, at least 1.

    Raises:
        ValueError: `every` is below 1. At the start of training: the policy heeds no masks.
    """

    def __init__(self, every: int) -> None:
        super().__init__()
        check_arguments({"mask_refresh": every})
        self.every = every
        self.rollouts = 0
        """Rollouts so far; a checkpoint keeps it."""

    def _init_callback(self) -> None:
        if not isinstance(self.model.policy, MaskableLLMPolicy):
            raise ValueError(
                f"mask_refresh: {type(self.model).__name__} knows no masks; make_algorithm('maskable_ppo') does."
            )

    def _on_training_start(self) -> None:
        policy = cast(MaskableLLMPolicy, self.model.policy)
        policy.mask_model = "actor"  # in samples and evaluations too, not only in the environment
        env = text_env(self.training_env)
        if env.mask_copy is None:  # a resumed run has one already
            env.take_masks_from(policy.lm)

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if self.rollouts and self.rollouts % self.every == 0:  # before the first rollout the copy is the actor
            text_env(self.training_env).refresh_masks()
        self.rollouts += 1
