"""A reference that follows the policy."""

from __future__ import annotations

from typing import cast

from stable_baselines3.common.callbacks import BaseCallback

from agents.policies.actor_critic import LLMActorCriticPolicy
from agents.rollouts.vec_env import text_env
from agents.rules import check_arguments


class ReferenceRefresh(BaseCallback):
    """Moves the environment's reference towards the policy every few rollouts.

    The KL then restrains how fast the policy moves, not how far it goes: ``rollout/kl`` is the distance from the refreshed
    reference. Hard (`share` 1): Shao et al. 2024, "DeepSeekMath", algorithm 1's outer loop (https://arxiv.org/abs/2402.03300);
    Liu et al. 2025, "ProRL" (https://arxiv.org/abs/2505.24864). As a moving average: Ramé et al. 2024, "WARP"
    (https://arxiv.org/abs/2406.16768).

    Args:
        every: Rollouts between refreshes, at least 1.
        share: How far the reference moves towards the policy, above 0, at most 1: 1 puts the policy in its place, less is a
            moving average of weights.

    Raises:
        ValueError: `every` is below 1, or the share is not above 0 and at most 1. When training begins: the policy is no
            language model.
    """

    def __init__(self, every: int, share: float = 1.0) -> None:
        super().__init__()
        check_arguments({"ref_refresh_every": every, "ref_refresh_share": share})
        self.every = every
        self.share = share
        self.rollouts = 0
        """Rollouts so far; a checkpoint keeps it."""

    def _init_callback(self) -> None:
        if not isinstance(self.model.policy, LLMActorCriticPolicy):
            raise ValueError(
                f"ref_refresh_every: {type(self.model).__name__}'s policy is no language model that a reference could follow."
            )

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if self.rollouts and self.rollouts % self.every == 0:  # before the first rollout the policy is the reference
            policy = cast(LLMActorCriticPolicy, self.model.policy)
            text_env(self.training_env).task.refresh_reference(policy.merged_actor(), self.share)
        self.rollouts += 1
