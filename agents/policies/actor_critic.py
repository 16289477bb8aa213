"""`LLMActorCriticPolicy`: a Hugging Face causal LM as a stable-baselines3 actor-critic policy."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import CategoricalDistribution, Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from agents.distributed import ranks
from agents.engines.ahead import EngineWriter
from agents.policies.acting import ActsOnText
from agents.policies.actor import Actor, save_language_model
from agents.policies.critic import Critic, CriticNetwork, CriticSource, enable_checkpointing, make_critic
from agents.policies.idle_critic import IdleCritic
from agents.policies.learning_rates import parameter_groups, scale_learning_rates
from agents.policies.micro_batches import MicroBatches
from agents.policies.observations import check_observation_space, split_observation
from agents.policies.optimizers import optimizer_defaults, optimizer_named
from agents.policies.planner import Planner
from agents.policies.rollout_scores import ScoresRollouts
from agents.policies.sampled_actions import CarriesLogProbs
from agents.policies.settings import PolicySettings
from agents.shards import loading, shard
from llm_env.episode import Episode
from llm_env.lm.loading import autocast
from llm_env.lm.log_probs import head_kl, head_log_probs
from llm_env.lm.packed_attention import packed_states
from llm_env.lm.packing import PackedBatch
from llm_env.lm.sampling import restrict, unpack_bits
from llm_env.lm.writer import Writer
from llm_env.reward.reference import Reference
from llm_env.rollout import respond
from llm_env.task import TextTask
from llm_env.text.prompts import Prompt


class LLMActorCriticPolicy(CarriesLogProbs, ActsOnText, ScoresRollouts, ActorCriticPolicy):
    """Actor: a causal LM. Critic: a head on it or a network of its own.

    `forward`, `predict` and `predict_values` take `LLMText-v0` observations and decode with a key-value cache that
    follows the observations' content (`llm_env.lm.decoding`). `evaluate_actions` takes them too, each read from its start,
    or a `PackedBatch` from `TokenRolloutBuffer`: then it makes one causal pass over whole episodes.

    Args:
        observation_space: The environment's: ``input_ids`` (L,) and ``length`` (1,).
        action_space: The environment's: one action for each of the V tokens.
        lr_schedule: Learning rate as a function of the progress remaining, 1 to 0.
        optimizer_class: Default: what the setting ``optimizer`` names, `torch.optim.AdamW` without weight decay, eps 1e-5.
        optimizer_kwargs: For the optimizer, besides the learning rate. None: `agents.policies.optimizers.optimizer_defaults`.
        settings: Fields of `agents.policies.settings.PolicySettings` (``model``, ``temperature``, ``critic``, ``lora_rank``,
            ``mixed_precision`` and so on); and SB3's own (``use_sde`` and so on), without effect on a language model.

    Raises:
        FileNotFoundError, ValueError: something cannot be loaded, or a setting breaks its rule.
        TypeError: the observations are not `LLMText-v0`'s, or a setting is not known.
    """

    actor: PreTrainedModel
    critic: Critic
    mask_model = "none"
    """Whose top-k and top-p restrict responses outside the environment: nobody's; see `MaskableLLMPolicy`."""

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        *,
        optimizer_class: type[torch.optim.Optimizer] = torch.optim.AdamW,
        optimizer_kwargs: dict[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        # `super().__init__` calls `_build`, so what that reads is set before. What `take_from` leaves is SB3's own.
        check_observation_space(type(self).__name__, observation_space)
        self.settings = PolicySettings.take_from(settings)
        optimizer_class = optimizer_named(self.settings.optimizer, optimizer_class)
        self.temperature = self.settings.temperature
        self.mixed_precision = self.settings.mixed_precision
        self.defer_values = False
        """While True, a critic network is not asked: values are NaN. A bound buffer says so while it collects a rollout."""
        self.scored_by_buffer = False
        """Whether a `TokenRolloutBuffer` is bound to this policy, which has values and log-probs scored again."""
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_defaults(optimizer_class) if optimizer_kwargs is None else optimizer_kwargs,
            **settings,
        )

    def _build(self, lr_schedule: Schedule) -> None:
        """Loads the networks (SB3's would be re-initialized orthogonally) and makes the optimizer."""
        s = self.settings
        with loading():
            # Outside nn.Module's registry: the same weights are registered once, as `actor`.
            self._acting = Actor(
                s.model,
                self.action_space,
                int(self.observation_space["input_ids"].shape[0]),  # type: ignore[index]
                s.lora_rank,
                s.lora_alpha,
                s.base_quantization,
                s.reference_load,
                s.mixed_precision,
                s.use_cache,
                s.trust_remote_code,
            )
            self.lm = self._acting.lm
            self.actor = self.lm.model
            # The critic: a head on the actor's states, or a network of its own.
            size, trunk = self.lm.hidden_size, self.lm.trunk
            source = CriticSource(
                self.lm.name,
                size,
                s.critic_start,
                s.trust_remote_code,
                trunk,
                s.critic_layers or 1,
                s.reward_shift,
                s.reward_scale,
            )
            self.critic = make_critic(s.critic, source)
        if s.gradient_checkpointing:
            enable_checkpointing(self.actor)
            if isinstance(self.critic, CriticNetwork):
                enable_checkpointing(self.critic.trunk)
        self._writes: Writer | None = None
        self._engine: EngineWriter | None = None
        self._planner = Planner(self._write_ahead, int(self.observation_space["input_ids"].high.max()))  # type: ignore[index]
        if ranks().shards:
            own = [self.critic.trunk] if isinstance(self.critic, CriticNetwork) else []
            self._acting.cut_into_shards(lambda: shard(self, [trunk, *own]))
        # Parameters exist by now: what evaluates them in parts, and what moves them.
        self.micro_batches = MicroBatches(self, s.micro_batch_tokens)
        self.optimizer = self.optimizer_class(
            parameter_groups(self, self.critic, s.critic_lr_scale),
            lr=lr_schedule(1),  # type: ignore[call-arg]
            **self.optimizer_kwargs,
        )
        if s.critic_lr_scale != 1.0:
            scale_learning_rates(self.optimizer)
        self.idle_critic = IdleCritic(self, s.offload)
        # SB3 drops gradients only after the next forward pass; they need not be in memory beside its activations.
        self.optimizer.register_step_post_hook(_drop_gradients)

    def get_distribution(self, obs: PyTorchObs | PackedBatch) -> Distribution:
        """π(·|s) for each observation, or each scored token of a packed batch; uniform for idle rows."""
        assert isinstance(self.action_dist, CategoricalDistribution)
        return self.action_dist.proba_distribution(action_logits=self._action_logits(obs))

    def _action_logits(self, obs: PyTorchObs | PackedBatch) -> Tensor:
        """Logits over the temperature, (n, V), float32, with masked tokens at `llm_env.lm.sampling.NEVER`."""
        if not isinstance(obs, PackedBatch):
            # Observations as SB3 stores them, each read by itself. (N, V)
            return self._logits(self._last_hidden(*split_observation(obs)), self._acting_lm())
        # A mini-batch of whole segments: one row for each scored token. (n, V)
        logits = self._logits(self._packed_hidden(obs), self.lm)
        return logits if obs.masks is None else restrict(logits, unpack_bits(obs.masks, self.lm.vocab_size))

    def predict_values(self, obs: PyTorchObs | PackedBatch) -> Tensor:
        """V(s) in score for each observation, shape (N, 1); 0 for idle rows, NaN under `defer_values`."""
        if isinstance(obs, PackedBatch):  # from TRPO, which fits its critic through this method
            with self._autocast(), self.idle_critic.asked():
                return self.critic(obs, None if self.critic.reads_text else self._packed_hidden(obs))[:, None]
        ids, lengths = split_observation(obs)
        hidden = None if self.critic.reads_text else self._last_hidden(ids, lengths)
        return self._values(hidden, ids, lengths)

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        return autocast(self.device, self.mixed_precision)

    def evaluate_actions(self, obs: PyTorchObs | PackedBatch, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Values, log-probs and entropies of actions taken.

        Args:
            obs: A packed batch of whole episode segments, or a dictionary of observations, each read from its start.
            actions: Tokens taken, shape (n,); of a packed batch, its `targets`.

        Returns:
            Values (n,), log π (n,) and entropies (n,) in nats, float32.

        Raises:
            RuntimeError: in mixed precision, nobody scored the old log-probs as this does, so ratios would not start at 1.
        """
        self.idle_critic.bring()  # there already while SB3 trains
        if isinstance(obs, PackedBatch):
            if self.rescores_log_probs and not self.scored_by_buffer:
                raise RuntimeError(
                    f"mixed_precision={self.mixed_precision!r} decodes with rounded weights: the buffer has to score log-probs "
                    "again. Call model.rollout_buffer.bind(model.policy, env) before learn(); make_algorithm does so."
                )
            # The usual way, from TokenRolloutBuffer: whole segments, one causal pass.
            values, log_probs, entropy = self._in_parts(self._evaluate, obs)
            return values, log_probs, entropy if self.settings.entropy_grad else entropy.detach()
        # From SB3's own buffers: every prefix is read from its start.
        ids, lengths = split_observation(obs)
        hidden = self._last_hidden(ids, lengths)
        busy = lengths > 0
        with self._autocast():
            log_probs, entropy = self._log_probs(hidden, actions.long().flatten())
        values = self._values(hidden, ids, lengths)[:, 0]
        return values, torch.where(busy, log_probs, 0.0), torch.where(busy, entropy, 0.0)

    def evaluate_actions_and_kl(
        self, batch: PackedBatch, reference: Reference
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`evaluate_actions` of a packed batch with KL(π‖π_ref) of the whole distributions, from the same pass.

        Args:
            batch: Whole episode segments, laid end to end, with n scored tokens in all.
            reference: π_ref.

        Returns:
            Values, log π, entropies and KL before each token, all (n,), float32, the last three in nats.
        """

        def evaluate(part: PackedBatch) -> tuple[Tensor, ...]:
            with self._autocast():
                hidden = self._packed_hidden(part)
                # The actor's states serve both; the reference makes a pass of its own.
                return *self._from_hidden(part, hidden), self._exact_kl(part, hidden, reference)

        self.idle_critic.bring()
        values, log_probs, entropy, kl = self._in_parts(evaluate, batch)
        return values, log_probs, entropy if self.settings.entropy_grad else entropy.detach(), kl

    def text_log_probs(self, batch: PackedBatch) -> Tensor:
        """Log π of texts' tokens at temperature 1, as a language model's loss takes them, in nats, shape (n,)."""

        def evaluate(part: PackedBatch) -> tuple[Tensor, ...]:
            with self._autocast():
                return (head_log_probs(self.lm, self._packed_hidden(part), part.targets, temperature=1.0)[0],)

        return self._in_parts(evaluate, batch)[0]

    def _in_parts(
        self, evaluate: Callable[[PackedBatch], tuple[Tensor, ...]], batch: PackedBatch
    ) -> tuple[Tensor, ...]:
        """`evaluate(batch)`, in parts where it does not fit in memory; its gradient is that of all processes' mini-batch."""
        outputs = self.micro_batches(functools.partial(self.compute, evaluate), batch)
        # Values and entropies are means over tokens in every loss; what the policy's is a mean over, the batch knows.
        shares = {
            "values": batch.share,
            "log_probs": batch.policy_share,
            "entropy": batch.share,
            "kl": batch.policy_share,
        }
        names = ("log_probs",) if len(outputs) == 1 else tuple(shares)[: len(outputs)]
        return ranks().joined(outputs, [shares[name] for name in names], self)

    def compute(self, evaluate: Callable[[PackedBatch], tuple[Tensor, ...]], batch: PackedBatch) -> tuple[Tensor, ...]:
        """`evaluate(batch)`; where the weights are in shards, they are put together for it (`agents.shards`)."""
        return evaluate(batch)

    def refresh(self) -> None:
        """Brings the copy that decodes up to date, where the weights are in shards; all ranks must ask."""
        self._acting.refresh()

    def _evaluate(self, batch: PackedBatch) -> tuple[Tensor, ...]:
        """Values, log-probs and entropies of a packed batch's tokens, each (n,)."""
        with self._autocast():
            return self._from_hidden(batch, self._packed_hidden(batch))

    def _from_hidden(self, batch: PackedBatch, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        log_probs, entropy = self._log_probs(hidden, batch.targets, batch.masks)
        return self.critic(batch, hidden), log_probs, entropy

    def _exact_kl(self, batch: PackedBatch, hidden: Tensor, reference: Reference) -> Tensor:
        """KL(π‖π_ref) of the whole distributions before each scored token, (n,)."""
        # The reference reads the same packed texts, without gradients; under LoRA it is this model, adapters off.
        with reference.frozen() as ref_lm:
            ref_hidden = packed_states(ref_lm.trunk, batch)[batch.index]
        return head_kl(self.lm, hidden, ref_lm, ref_hidden, self.temperature, batch.masks)

    def _packed_hidden(self, batch: PackedBatch) -> Tensor:
        """The actor's hidden states (n, H) that predict the scored tokens."""
        with self._autocast():
            return packed_states(self.lm.trunk, batch)[batch.index]

    def _log_probs(self, hidden: Tensor, tokens: Tensor, masks: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Log π of tokens and the entropies, (n,)."""
        return head_log_probs(self.lm, hidden, tokens, self.temperature, self.settings.entropy_grad, masks=masks)

    def respond(
        self, task: TextTask, prompts: Sequence[Prompt | None], seed: int, deterministic: bool = False
    ) -> list[Episode]:
        """One scored response to each prompt, under the task's masks if this is a masked policy; see `respond`.

        The sampler's state outside is untouched.
        """
        half = self.mixed_precision == "bf16"
        return respond(
            self._acting.whole,
            task,
            prompts,
            seed,
            deterministic=deterministic,
            mixed_precision=half,
            mask=self.mask_model,
        )

    def save_actor(self, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        """Writes the actor, adapters merged, and its tokenizer to a folder for `from_pretrained`."""
        save_language_model(self.merged_actor(), tokenizer, folder)

    def save_adapter(self, folder: Path | None) -> None:
        """With LoRA: writes the adapters alone to a folder for `peft.PeftModel.from_pretrained`.

        Of weights in shards all ranks must ask, of which rank 0 alone gives a folder.
        """
        self._acting.save_adapter(folder)

    def merged_actor(self) -> PreTrainedModel:
        """The actor as an ordinary causal LM: itself, or with LoRA a copy with the adapters merged in."""
        return self._acting.merged()

    def set_training_mode(self, mode: bool) -> None:
        """Train or eval mode: SB3 says so before an update and before a rollout.

        There is no dropout; but cache and plan are dropped, for the weights are about to change, and the critic is brought.
        """
        if mode:
            self._forget()
            self.idle_critic.bring()
        else:
            self.refresh()
            self.idle_critic.put_aside()
        super().set_training_mode(mode)

    def _forget(self) -> None:
        """Drops what came from weights that change now: the decoder's cache, and what was written ahead."""
        self._acting.forget()
        self._planner.drop()
        if self._engine is not None:
            self._engine.is_stale = True

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """All weights, or with LoRA the trainable ones: the base model is named by `model` and never changes."""
        state: dict[str, Any] = super().state_dict(*args, **kwargs)
        if not self.settings.lora_rank:
            return state
        # SB3 saves what this returns, so a LoRA checkpoint is as small as its adapters and critic.
        frozen = self._frozen_names()
        return {name: value for name, value in state.items() if name not in frozen}

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Loads what `state_dict` gave.

        Raises:
            RuntimeError: with `strict`, names are missing or unknown.
        """
        self._forget()
        # Not strict: with LoRA the base weights are missing on purpose, which is checked next.
        result = super().load_state_dict(state_dict, strict=False, assign=assign)
        missing = set(result.missing_keys) - (self._frozen_names() if self.settings.lora_rank else set())
        if strict and (missing or result.unexpected_keys):
            raise RuntimeError(
                f"The saved weights do not fit this policy: missing {sorted(missing)[:5]}, "
                f"unknown {result.unexpected_keys[:5]}. Were they saved with the same model, critic and lora_rank?"
            )
        return result

    def _frozen_names(self) -> set[str]:
        # By identity, because a tied weight has two names in the state and one among the parameters.
        frozen = {id(p) for _, p in nn.Module.named_parameters(self) if not p.requires_grad}
        state = super().state_dict(keep_vars=True)
        names = {name for name, value in state.items() if id(value) in frozen}
        # Scales of a quantized weight stand behind its name, as ``….weight.absmax``.
        return names | {name for name in state if name.rpartition(".weight.")[0] + ".weight" in names}

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {
            "observation_space": self.observation_space,
            "action_space": self.action_space,
            "lr_schedule": self._dummy_schedule,
            "optimizer_class": self.optimizer_class,
            "optimizer_kwargs": self.optimizer_kwargs,
            **self.settings.to_dict(),
        }


def _drop_gradients(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    optimizer.zero_grad(set_to_none=True)
