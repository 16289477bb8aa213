"""MaskablePPO on a language model: a policy that chooses among the tokens that the environment's `action_masks` allow.

sb3-contrib asks for its own base class, whose constructor would build other networks, so ours is registered as a virtual
subclass instead of inheriting from it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import Tensor

from agents.policies.actor_critic import LLMActorCriticPolicy
from llm_env.lm.packing import PackedBatch


class MaskableLLMPolicy(LLMActorCriticPolicy):
    """`LLMActorCriticPolicy` under action masks; its arguments are the same.

    Top-k and top-p look at the reference, or with `agents.callbacks.mask_refresh.MaskRefresh` at an older copy of the actor.
    """

    mask_model = "reference"
    """Whose top-k and top-p restrict responses outside the environment: ``reference`` or ``actor``."""

    def forward(
        self,
        obs: PyTorchObs,
        deterministic: bool = False,
        allowed: Tensor | None = None,
        action_masks: np.ndarray | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Samples the next tokens; `action_masks` (N, V) says which may be chosen."""
        # MaskablePPO passes `action_masks`, the other callers `allowed`.
        return super().forward(obs, deterministic, allowed if action_masks is None else self._allowed(action_masks))

    def evaluate_actions(
        self, obs: PyTorchObs | PackedBatch, actions: Tensor, action_masks: Any = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Values, log-probs and entropies; a packed batch has its masks with it.

        Raises:
            TypeError: masks for observations that are no packed batch.
        """
        # MaskablePPO passes the buffer's masks again, as bits; the batch itself has them, so they are not read twice.
        if action_masks is not None and not isinstance(obs, PackedBatch):
            raise TypeError("Masked actions are scored from TokenRolloutBuffer's batches.")
        return super().evaluate_actions(obs, actions)

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: np.ndarray | None = None,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """SB3's `predict`, among the tokens that `action_masks` allow."""
        allowed = None if action_masks is None else self._allowed(action_masks)
        return self._act(observation, lambda obs: self._predict(obs, deterministic, allowed)), state

    def _allowed(self, action_masks: np.ndarray) -> Tensor:
        """Masks as they come from sb3-contrib as a boolean tensor (N, V)."""
        # (V,) from a single environment, (N, V) from a vectorized one.
        return torch.as_tensor(action_masks, dtype=torch.bool, device=self.device).reshape(-1, self.lm.vocab_size)


# MaskablePPO checks isinstance(policy, MaskableActorCriticPolicy).
MaskableActorCriticPolicy.register(MaskableLLMPolicy)
