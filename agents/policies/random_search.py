"""`LLMSearchPolicy`: a language model of which black-box search moves a few weights.

Augmented random search (Mania et al. 2018, https://arxiv.org/abs/1803.07055) perturbs all that `parameters` gives at once;
a million weights would need as many tries as they have directions. The gains of the last normalization layer, one number
for each hidden unit, stand between the trunk and the LM head: few, and they reach every logit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from sb3_contrib.ars.policies import ARSPolicy
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import Tensor, nn

from agents.policies.actor import PlainActor, load_actor_network
from agents.policies.observations import split_observation
from agents.policies.sampled_actions import ActionTensor
from llm_env.lm.decoding import CachedDecoder
from llm_env.lm.sampling import sample_tokens

SEARCHED = ("last_norm", "norms")


class LLMSearchPolicy(PlainActor, BasePolicy):
    """A causal LM that decodes greedily; `parameters` are its normalization gains.

    Args:
        observation_space: The environment's, of `LLMText-v0`.
        action_space: The environment's, of `LLMText-v0`.
        model: Folder or hub id of the actor. None: the embedded default.
        temperature: Divides the logits, where tokens are sampled.
        searched: ``last_norm``: the last normalization before the LM head; ``norms``: all vectors of the model.
        trust_remote_code: Whether model code from a hub may run.

    Raises:
        FileNotFoundError, ValueError: the model cannot be loaded, has other tokens, or has no such weights.
    """

    mixed_precision = "no"
    """Decoding is in float32: there is no gradient that would be cheaper in bf16."""

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        *,
        model: str | None = None,
        temperature: float = 1.0,
        searched: str = "last_norm",
        trust_remote_code: bool = False,
    ) -> None:
        if searched not in SEARCHED:
            raise ValueError(f"searched={searched!r} is not known; use one of {', '.join(SEARCHED)}.")
        super().__init__(observation_space, action_space)
        self.temperature = temperature
        self._arguments = {
            "model": model,
            "temperature": temperature,
            "searched": searched,
            "trust_remote_code": trust_remote_code,
        }
        self.lm = load_actor_network(model, action_space, trust_remote_code)
        self.actor = self.lm.model
        # Gains and biases are the parameters of one dimension; in the trunk the last module named "norm" is the last layer's.
        vectors = [n for n, p in self.actor.named_parameters() if p.ndim == 1]
        norms = [n for n, m in self.lm.trunk.named_modules() if "norm" in type(m).__name__.lower()]
        if not vectors or not norms:
            raise ValueError(
                f"model={self.lm.name!r} has no normalization weights to search; train it with another algorithm."
            )
        last = dict(self.lm.trunk.named_modules())[norms[-1]]
        chosen = {id(p) for p in last.parameters()} if searched == "last_norm" else None
        self._searched = [
            f"actor.{n}"
            for n, p in self.actor.named_parameters()
            if p.ndim == 1 and (chosen is None or id(p) in chosen)
        ]
        self._decoder = CachedDecoder(self.lm, int(observation_space["input_ids"].shape[0]))  # type: ignore[index]

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """Gives the searched weights only: what ARS perturbs, and writes back through `load_from_vector`.

        While the policy is constructed, there are none yet.
        """
        searched = set(getattr(self, "_searched", ()))
        yield from ((n, p) for n, p in super().named_parameters(*args, **kwargs) if n in searched)

    def load_from_vector(self, vector: np.ndarray) -> None:
        """Sets the searched weights, and drops the cache."""
        self._decoder.clear()
        with torch.no_grad():
            super().load_from_vector(vector)

    def forward(self, obs: PyTorchObs, deterministic: bool = True) -> Tensor:
        """Chooses the next tokens, shape (N,), as `_predict` does."""
        return self._predict(obs, deterministic)

    @torch.no_grad()
    def _predict(self, observation: PyTorchObs, deterministic: bool = True) -> Tensor:
        """Chooses the next tokens (N,), which carry their log-probs: the likeliest ones, or samples."""
        ids, lengths = split_observation(observation)  # (N, L), (N,)
        logits = self.lm.logits(self._decoder.hidden(ids, lengths)).float() / self.temperature  # (N, V)
        actions, log_probs = sample_tokens(logits, deterministic)
        # A policy that always takes the likeliest token takes it with certainty: its log π is 0.
        return ActionTensor.carry(
            actions, torch.zeros_like(log_probs) if deterministic else log_probs, self.temperature
        )

    def _get_constructor_parameters(self) -> dict[str, Any]:
        """Gives what SB3 saves with a model, to make the same policy again."""
        return {"observation_space": self.observation_space, "action_space": self.action_space, **self._arguments}


# ARS asks for its own base class, whose constructor would build a small network of its own.
ARSPolicy.register(LLMSearchPolicy)
