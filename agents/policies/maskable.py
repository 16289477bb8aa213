"""MaskablePPO on a language model: the policy, the buffer, and an older actor to take masks from.

sb3-contrib asks for its own base classes. Their constructors would build networks and float32 masks of vocabulary size,
so ours are registered as virtual subclasses instead of inheriting from them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sb3_contrib.common.maskable.buffers import MaskableRolloutBuffer
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import Tensor

from agents.policies.actor_critic import LLMActorCriticPolicy
from agents.policies.decoding_copy import DecodingCopy
from agents.rollouts.maskable import MaskableTokenRolloutBuffer
from agents.rollouts.vec_env import LLMTextVecEnv
from llm_env.episode import Episode
from llm_env.lm.packing import PackedBatch
from llm_env.lm.registry import SharedLM
from llm_env.reward.reference import Reference, StepwiseReference
from llm_env.rollout import respond
from llm_env.task import TextTask
from llm_env.text.prompts import Prompt


class MaskableLLMPolicy(LLMActorCriticPolicy):
    """`LLMActorCriticPolicy` that chooses among the tokens that the environment's `action_masks` allow.

    Args:
        args: As its.
        mask_refresh: Rollouts after which the copy of the actor, whose top-k and top-p the masks are, is brought up to date
            (NLPO; see `take_masks_from_actor`); 0: the masks are the reference's.
        kwargs: As its.

    Raises:
        ValueError: `mask_refresh` is negative.
    """

    def __init__(self, *args: Any, mask_refresh: int = 0, **kwargs: Any) -> None:
        if mask_refresh < 0:
            raise ValueError(f"mask_refresh={mask_refresh} must be at least 0 rollouts (0: masks from the reference).")
        self.mask_refresh = mask_refresh
        self._mask_copy: tuple[DecodingCopy, StepwiseReference] | None = None
        self._rollouts = 0
        super().__init__(*args, **kwargs)

    def forward(
        self,
        obs: PyTorchObs,
        deterministic: bool = False,
        allowed: Tensor | None = None,
        action_masks: np.ndarray | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Samples the next tokens; `action_masks` (N, V) says which may be chosen."""
        if action_masks is not None:
            allowed = torch.as_tensor(action_masks, dtype=torch.bool, device=self.device).reshape(
                -1, self.lm.vocab_size
            )
        return super().forward(obs, deterministic, allowed)

    def evaluate_actions(
        self, obs: PyTorchObs | PackedBatch, actions: Tensor, action_masks: Any = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Values, log-probs and entropies; a packed batch has its masks with it.

        Raises:
            TypeError: masks for observations that are no packed batch.
        """
        if action_masks is not None and not isinstance(obs, PackedBatch):
            raise TypeError("Masked actions are scored from MaskableTokenRolloutBuffer's batches.")
        return super().evaluate_actions(obs, actions)

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: np.ndarray | None = None,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """SB3's `predict`, among the tokens that `action_masks` allows."""
        self.set_training_mode(False)
        obs, vectorized = self.obs_to_tensor(observation)
        with torch.no_grad():
            actions = self.forward(obs, deterministic, action_masks=action_masks)[0].cpu().numpy()
        return (actions if vectorized else actions[0]), state

    def greedy_episodes(self, task: TextTask, prompts: list[Prompt]) -> list[Episode]:
        """As `LLMActorCriticPolicy.greedy_episodes`, under the masks."""
        return respond(self.lm, task, prompts, seed=0, deterministic=True, mask=self.mask_model)

    @property
    def mask_model(self) -> str:
        """Whose top-k and top-p the masks are."""
        return "actor" if self.mask_refresh else "reference"

    def take_masks_from_actor(self, venv: LLMTextVecEnv) -> None:
        """Has the environment's top-k and top-p look at a copy of the actor instead of the reference."""
        task = venv.task
        copy = DecodingCopy(self.lm, torch.float32)
        shared = SharedLM(copy, task.tokenizer, task.eos_ids, task.settings.load)
        source = StepwiseReference(Reference(shared, self.temperature, self.mixed_precision), task.max_length)
        venv.batch.mask_source = source
        self._mask_copy = (copy, source)

    def set_training_mode(self, mode: bool) -> None:
        """Train or eval mode; counts updates, and refreshes the masks' actor before the rollout that follows them."""
        super().set_training_mode(mode)
        if mode:
            self._rollouts += 1
        elif self._mask_copy is not None and self._rollouts >= self.mask_refresh:
            self._rollouts = 0
            self._mask_copy[0].update()
            self._mask_copy[1].decoder.clear()

    def mask_state(self) -> dict[str, Tensor]:
        """The weights of the actor that the masks look at, and its age in rollouts; empty with masks of the reference."""
        if self._mask_copy is None:
            return {}
        weights = dict(self._mask_copy[0].model.named_parameters())
        return {**weights, "rollouts": torch.tensor(self._rollouts)}

    @torch.no_grad()
    def load_mask_state(self, state: dict[str, Tensor]) -> None:
        """Puts that actor where `mask_state` was taken."""
        assert self._mask_copy is not None
        self._rollouts = int(state["rollouts"])
        for name, parameter in self._mask_copy[0].model.named_parameters():
            parameter.copy_(state[name])
        self._mask_copy[1].decoder.clear()

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "mask_refresh": self.mask_refresh}


MaskableActorCriticPolicy.register(MaskableLLMPolicy)
MaskableRolloutBuffer.register(MaskableTokenRolloutBuffer)
