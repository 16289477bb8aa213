"""`LLMTrustRegionPolicy`: `LLMActorCriticPolicy` as sb3-contrib's TRPO needs it.

TRPO derives gradients again (Hessian-vector products), takes one gradient for each parameter that `named_parameters` gives, and
leaves out names with "value" in them. So attention and log-probabilities are computed by operations that can be derived twice,
and `named_parameters` gives the actor's weights as **one vector** and the critic's under names that TRPO leaves out. All of
that protocol is in this file.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel

from agents.policies.actor_critic import LLMActorCriticPolicy
from agents.policies.critic import HeadCritic
from agents.policies.flat_parameters import FlatParameters
from agents.policies.observations import split_observation
from llm_env.lm.log_probs import head_log_probs
from llm_env.lm.packing import PackedBatch


class LLMTrustRegionPolicy(LLMActorCriticPolicy):
    """An actor-critic policy whose gradients have gradients.

    While TRPO updates the policy, the vector is where the actor's weights are; they are written back into the model before
    anybody else reads them: `predict_values`, `state_dict`, `merged_actor`, and decoding.

    Args:
        args: As for `LLMActorCriticPolicy`.
        kwargs: As for `LLMActorCriticPolicy`, without ``gradient_checkpointing`` and ``micro_batch_tokens``.

    Raises:
        ValueError: a setting that reads the text again in the backward pass.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if kwargs.get("gradient_checkpointing") or kwargs.get("micro_batch_tokens"):
            raise ValueError(
                "gradient_checkpointing and micro_batch_tokens do not go with TRPO: what is read "
                "again in the backward pass cannot be derived twice. Leave them out."
            )
        self._flat: FlatParameters | None = None
        super().__init__(*args, **kwargs)
        if isinstance(self.critic, HeadCritic):
            # TRPO moves what it knows as the actor's; a trunk that the value loss moves as well would leave its trust region.
            self.critic.detach = True

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """While the policy is constructed, all parameters; from then on ``actor``, a vector, and ``value.…``, the critic's."""
        # The parent's constructor gives the optimizer all weights; TRPO asks afterwards.
        if not hasattr(self, "optimizer"):
            yield from super().named_parameters(*args, **kwargs)
            return
        if self._flat is None:
            self._flat = FlatParameters(self.actor)
        # sb3-contrib's TRPO.`_compute_actor_grad` skips every name with "value" in it.
        yield "actor", self._flat.vector
        yield from ((f"value.{name}", p) for name, p in self.critic.named_parameters() if p.requires_grad)

    def _action_logits(self, obs: PyTorchObs | PackedBatch) -> Tensor:
        """Logits whose gradient reaches the vector that `named_parameters` gave."""
        if isinstance(obs, PackedBatch):
            return self._derivable(lambda: super(LLMTrustRegionPolicy, self)._action_logits(obs))
        # TRPO's line search has other weights at every call, so nothing is cached.
        if self._flat is not None and self.training:
            ids, lengths = split_observation(obs)
            return self._derivable(lambda: self._logits(self._fresh_hidden(ids, lengths), self.lm))
        return super()._action_logits(obs)

    def _derivable(self, function: Callable[[], Tensor]) -> Tensor:
        return function() if self._flat is None else self._flat.call(function)

    def _in_parts(
        self, evaluate: Callable[[PackedBatch], tuple[Tensor, ...]], batch: PackedBatch
    ) -> tuple[Tensor, ...]:
        """At once: what is read again in the backward pass has no second derivative."""
        return evaluate(batch)

    def _packed_hidden(self, batch: PackedBatch) -> Tensor:
        """Hidden states, by attention without a fused kernel where gradients are due."""
        # Fused attention kernels have no second derivative; PyTorch's plain one is slower, and used only where needed.
        kernel = sdpa_kernel(SDPBackend.MATH) if torch.is_grad_enabled() else contextlib.nullcontext()
        with kernel:
            return super()._packed_hidden(batch)

    def _log_probs(self, hidden: Tensor, tokens: Tensor, masks: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Log π and entropies, by operations that can be derived any number of times."""
        entropy_grad = self.settings.entropy_grad
        return head_log_probs(self.lm, hidden, tokens, self.temperature, entropy_grad, fused=False, masks=masks)

    def _push(self) -> None:
        """Writes the vector into the model, if it may have changed."""
        if self._flat is not None:
            self._flat.push()

    def predict_values(self, obs: PyTorchObs | PackedBatch) -> Tensor:
        """V(s), from the weights as they are now."""
        self._push()
        return super().predict_values(obs)

    def set_training_mode(self, mode: bool) -> None:
        """Train or eval mode; at the end of an update the model counts again, not the vector."""
        # SB3 calls this with False before each rollout, when the update is over.
        if not mode and self._flat is not None:
            self._flat.release()
        super().set_training_mode(mode)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """As `LLMActorCriticPolicy.state_dict`, from the weights as they are now."""
        self._push()
        return super().state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """As `LLMActorCriticPolicy.load_state_dict`; the model counts from now on."""
        if self._flat is not None:
            self._flat.forget()
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    def merged_actor(self) -> PreTrainedModel:
        """The actor as an ordinary causal LM, from the weights as they are now."""
        self._push()
        return super().merged_actor()
