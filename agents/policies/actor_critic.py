"""`LLMActorCriticPolicy`: a Hugging Face causal LM as a stable-baselines3 actor-critic policy."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from peft import get_peft_model
from stable_baselines3.common.distributions import CategoricalDistribution, Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel

from agents.policies.actor import adapter_config, check_vocabulary, optimizer_defaults
from agents.policies.auxiliary import PretrainingMix, kl_loss, ride
from agents.policies.critic import CRITICS, CriticNetwork, enable_checkpointing, load_critic, zero_head
from agents.policies.decoding_copy import DecodingCopy
from agents.policies.flat_parameters import FlatParameters
from agents.policies.micro_batches import MicroBatches
from agents.policies.observations import sequences_of, split_observation
from agents.policies.sampled_actions import ActionTensor, LazyValues, attach_scorer
from llm_env.default_task import DEFAULT_MODEL, DEFAULT_REWARD_MODEL
from llm_env.episode import Episode
from llm_env.lm.causal_lm import CausalLM, load_causal_lm
from llm_env.lm.decoding import CachedDecoder
from llm_env.lm.loading import autocast, load_tokenizer
from llm_env.lm.log_probs import head_kl, head_log_probs
from llm_env.lm.names import LoadSettings, check_mixed_precision
from llm_env.lm.packed_attention import packed_states
from llm_env.lm.packing import PackedBatch, in_groups, pack, pack_ends
from llm_env.lm.registry import shared_causal_lm
from llm_env.lm.sampling import restrict, sample_tokens, unpack_bits
from llm_env.reward.kl import KL_ESTIMATORS
from llm_env.reward.reference import Reference
from llm_env.rollout import respond
from llm_env.task import TextTask
from llm_env.text.prompts import Prompt
from llm_env.text.texts import encode_text, read_texts

SCORE_TOKENS = 16_384  # tokens scored at once after collection, padding included


class LLMActorCriticPolicy(ActorCriticPolicy):
    """Actor: a causal LM. Critic: a head on it or a network of its own.

    `forward`, `predict` and `predict_values` take `LLMText-v0` observations and decode with a key-value cache that
    follows the observations' content (`llm_env.lm.decoding`). `evaluate_actions` takes them too, each read from its start,
    or a `PackedBatch` from `TokenRolloutBuffer`: then it makes one causal pass over whole episodes.

    All constructor arguments besides SB3's are names and numbers, so that `model.save` pickles no weights with them.

    Args:
        observation_space: The environment's.
        action_space: The environment's.
        lr_schedule: Learning rate as a function of the progress remaining.
        model: Folder or hub id of the actor. None: the embedded default.
        temperature: Divides the logits; must be the environment's.
        critic: ``reward_model``, ``actor``, ``head``, ``detached_head`` or ``none``; see `agents.policies.critic`.
        reward_model: Folder or hub id that a ``reward_model`` critic starts from. None: the embedded default, if
            `model` is it too.
        lora_rank: Rank r of LoRA adapters on all linear layers (Hu et al. 2021, https://arxiv.org/abs/2106.09685);
            0 trains all weights.
        lora_alpha: LoRA's α; None: 2r.
        reference_load: With LoRA, `LoadSettings` of the environment's reference as a tuple: the adapters are put into
            that very model, which is then the reference when they are switched off. None: a copy of one's own.
        mixed_precision: ``no``, or ``bf16``: weights in float32, arithmetic under autocast.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, a third more time.
        micro_batch_tokens: Tokens of a mini-batch, prompts included, whose activations are in memory at a time; a larger
            mini-batch is worked through in parts, with the same gradient. None: all, unless that does not fit.
        use_cache: False reads the whole prefix for every token: slow, for comparison.
        defer_values: A network critic is not asked while collecting (values are NaN there); the buffer has
            `score_segments` do it in large batches. Needs `TokenRolloutBuffer`.
        entropy_grad: Whether `evaluate_actions` gives an entropy with gradients; False saves time where ``ent_coef`` is 0.
        critic_lr_scale: The critic's learning rate, as a multiple of the actor's.
        kl_loss: A KL term in the loss of each mini-batch that has a `kl_coef`: ``k1``, ``k2``, ``k3`` or ``exact`` (see
            `agents.policies.auxiliary.kl_loss`). None: there is none.
        ptx_texts: Texts (see `llm_env.text.texts`) whose language-model loss is mixed into the update: PPO-ptx.
        ptx_coef: Its weight, InstructGPT's γ.
        ptx_tokens: Tokens of these texts that are read with each mini-batch.
        second_derivatives: For TRPO: gradients have gradients (attention without a fused kernel, no micro-batches), and
            `named_parameters` gives the actor's as one vector (`agents.policies.flat_parameters`) and the critic's under
            names that TRPO leaves out.
        trust_remote_code: Whether model code from a hub may run.
        optimizer_class: Default: `torch.optim.AdamW`, without weight decay, eps 1e-5.
        optimizer_kwargs: For the optimizer, besides the learning rate.
        kwargs: SB3's own (``use_sde`` and so on), without effect on a language model.

    Raises:
        FileNotFoundError, ValueError: something cannot be loaded, or a setting breaks its rule.
    """

    actor: PreTrainedModel

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        *,
        model: str | None = None,
        temperature: float = 1.0,
        critic: str = "reward_model",
        reward_model: str | None = None,
        lora_rank: int = 0,
        lora_alpha: float | None = None,
        reference_load: tuple[str, str, bool] | None = None,
        mixed_precision: str = "no",
        gradient_checkpointing: bool = False,
        micro_batch_tokens: int | None = None,
        use_cache: bool = True,
        defer_values: bool = False,
        entropy_grad: bool = True,
        critic_lr_scale: float = 1.0,
        kl_loss: str | None = None,
        ptx_texts: str | None = None,
        ptx_coef: float = 1.0,
        ptx_tokens: int = 1024,
        second_derivatives: bool = False,
        trust_remote_code: bool = False,
        optimizer_class: type[torch.optim.Optimizer] = torch.optim.AdamW,
        optimizer_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if critic not in CRITICS:
            raise ValueError(f"critic={critic!r} is not known; use one of {', '.join(CRITICS)}.")
        check_mixed_precision(mixed_precision)
        if micro_batch_tokens is not None and micro_batch_tokens < 1:
            raise ValueError(f"micro_batch_tokens={micro_batch_tokens} must be at least 1, or None for no limit.")
        if second_derivatives and (gradient_checkpointing or micro_batch_tokens):
            raise ValueError(
                "gradient_checkpointing and micro_batch_tokens do not go with second_derivatives (TRPO): what is read "
                "again in the backward pass cannot be derived twice. Leave them out."
            )
        if lora_rank < 0:
            raise ValueError(f"lora_rank={lora_rank} must be at least 0 (0 trains all weights).")
        if not critic_lr_scale > 0:
            raise ValueError(f"critic_lr_scale={critic_lr_scale} must be above 0.")
        if kl_loss is not None and kl_loss not in KL_ESTIMATORS:
            raise ValueError(f"kl_loss={kl_loss!r} is not known; use one of {', '.join(KL_ESTIMATORS)}.")
        if kl_loss == "k1":
            warnings.warn(
                "k1 in the loss has a gradient of 0 in expectation: it restrains nothing. Use k2, k3 or exact there, or k1 "
                "in the reward.",
                stacklevel=2,
            )
        if reward_model is None and model is None:
            reward_model = DEFAULT_REWARD_MODEL
        self._own: dict[str, Any] = {
            "model": model,
            "temperature": temperature,
            "critic": critic,
            "reward_model": reward_model,
            "lora_rank": lora_rank,
            "lora_alpha": lora_alpha,
            "reference_load": reference_load,
            "mixed_precision": mixed_precision,
            "gradient_checkpointing": gradient_checkpointing,
            "micro_batch_tokens": micro_batch_tokens,
            "use_cache": use_cache,
            "defer_values": defer_values,
            "entropy_grad": entropy_grad,
            "critic_lr_scale": critic_lr_scale,
            "kl_loss": kl_loss,
            "ptx_texts": ptx_texts,
            "ptx_coef": ptx_coef,
            "ptx_tokens": ptx_tokens,
            "second_derivatives": second_derivatives,
            "trust_remote_code": trust_remote_code,
        }
        self.auxiliary_losses: dict[str, list[float]] = {}
        """What the further terms of the loss were since somebody last emptied this; see `TextMetricsCallback`."""
        self.temperature = temperature
        self.mixed_precision = mixed_precision
        self.entropy_grad = entropy_grad
        if optimizer_kwargs is None:
            optimizer_kwargs = optimizer_defaults(optimizer_class)
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
            **kwargs,
        )

    # ------------------------------------------------------------------------------------------------ construction
    def _build(self, lr_schedule: Schedule) -> None:
        """Loads the networks (SB3's would be re-initialised orthogonally) and makes the optimizer."""
        own = self._own
        name = own["model"] or DEFAULT_MODEL
        # Outside nn.Module's registry: a CausalLM is no module, and PEFT's wrapper holds the actor a second time.
        self.lm, self._peft = self._load_actor(name)
        self.actor = self.lm.model
        check_vocabulary(self.lm, self.action_space)
        hidden_size = int(self.actor.get_output_embeddings().weight.shape[1])
        self.critic: nn.Module | None = None
        if own["critic"] in ("head", "detached_head"):
            self.critic = zero_head(hidden_size)
        elif own["critic"] != "none":
            self.critic = load_critic(own["critic"], name, own["reward_model"], own["trust_remote_code"])
        if own["gradient_checkpointing"]:
            enable_checkpointing(self.actor)
            if isinstance(self.critic, CriticNetwork):
                enable_checkpointing(self.critic.trunk)
        max_length = int(self.observation_space["input_ids"].shape[0])  # type: ignore[index]
        self._micro_batches = MicroBatches(self._evaluate_packed, self, own["micro_batch_tokens"])
        self._decoder = CachedDecoder(self.lm, max_length, use_cache=own["use_cache"])
        self._copy: DecodingCopy | None = None
        self._flat: FlatParameters | None = None
        self.mix: PretrainingMix | None = None
        if own["ptx_texts"] is not None:
            self.mix = self._load_mix(name)
        self.optimizer = self.optimizer_class(
            self._parameter_groups(),
            lr=lr_schedule(1),  # type: ignore[call-arg]
            **self.optimizer_kwargs,
        )
        if own["critic_lr_scale"] != 1.0:
            scale_learning_rates(self.optimizer)
        # SB3 drops gradients only after the next forward pass; they need not be in memory beside its activations.
        self.optimizer.register_step_post_hook(_drop_gradients)

    def _parameter_groups(self) -> list[Any]:
        """Trainable parameters; the critic's in a group of their own where their learning rate is another."""
        scale = self._own["critic_lr_scale"]
        everything = [p for p in self.parameters() if p.requires_grad]
        if scale == 1.0:
            return everything
        if self.critic is None:
            raise ValueError(f"critic_lr_scale={scale}, but there is no critic.")
        own = [p for p in self.critic.parameters() if p.requires_grad]
        known = {id(p) for p in own}
        rest = [p for p in everything if id(p) not in known]
        return [{"params": rest, "lr_scale": 1.0}, {"params": own, "lr_scale": scale}]

    def _load_mix(self, name: str) -> PretrainingMix:
        own = self._own
        tokenizer = load_tokenizer(name, trust_remote_code=own["trust_remote_code"])
        texts = [encode_text(record, tokenizer) for record in read_texts(own["ptx_texts"])]
        return PretrainingMix(texts, own["ptx_coef"], own["ptx_tokens"])

    def _load_actor(self, name: str) -> tuple[CausalLM, Any]:
        own = self._own
        if not own["lora_rank"]:
            return load_causal_lm(name, LoadSettings("float32", "cpu", own["trust_remote_code"])), None
        lm: CausalLM | None = None
        if own["reference_load"] is not None:
            shared = shared_causal_lm(name, LoadSettings(*own["reference_load"]))
            lm = shared.lm if shared.lend(self) else None
        if lm is None:
            lm = load_causal_lm(name, LoadSettings("float32", "cpu", own["trust_remote_code"]))
        config = adapter_config(lm.model, own["lora_rank"], own["lora_alpha"])
        return lm, [get_peft_model(lm.model, config)]  # in a list: not a submodule

    @property
    def has_own_critic(self) -> bool:
        """Whether the critic is a network of its own, not a head on the actor's trunk."""
        return isinstance(self.critic, CriticNetwork)

    @property
    def rescores_values(self) -> bool:
        """Whether values while collecting are missing or rounded differently from those in training."""
        return (self._own["defer_values"] and self.has_own_critic) or self.rescores_log_probs

    @property
    def rescores_log_probs(self) -> bool:
        """Whether log-probs while collecting are rounded differently from those in training."""
        return self.mixed_precision != "no"

    # ------------------------------------------------------------------------------------------------ acting
    def forward(
        self, obs: PyTorchObs, deterministic: bool = False, allowed: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Samples the next tokens.

        Args:
            obs: Dictionary of ``input_ids`` (N, L) and ``length`` (N, 1).
            deterministic: Take the likeliest token.
            allowed: Which tokens may be chosen, boolean, shape (N, V); None: all.

        Returns:
            Actions (N,), which carry their log-probs to the environment; values (N, 1); log-probs (N,). Idle rows get 0.
        """
        ids, lengths = split_observation(obs)
        hidden = self._last_hidden(ids, lengths)
        busy = lengths > 0
        actions, log_probs = torch.zeros_like(lengths), torch.zeros(len(lengths), device=lengths.device)
        if busy.any():  # idle rows cost no head and no sampling
            logits = self._logits(hidden[busy], self._acting_lm())
            if allowed is not None:
                logits = restrict(logits, allowed[busy])
            actions[busy], log_probs[busy] = sample_tokens(logits, deterministic)
        if self._own["defer_values"] and self.has_own_critic:
            values = torch.full((len(lengths), 1), torch.nan, device=self.device)
        else:
            values = self._values(hidden, ids, lengths)
        carried = ActionTensor.carry(actions, log_probs, self.temperature)
        return carried, values, attach_scorer(log_probs, self)

    def get_distribution(self, obs: PyTorchObs | PackedBatch) -> Distribution:
        """π(·|s) for each observation, or each scored token of a packed batch; uniform for idle rows."""
        if isinstance(obs, PackedBatch):
            logits = self._derivable(lambda: self._logits(self._packed_hidden(obs), self.lm))
            if obs.masks is not None:
                logits = restrict(logits, unpack_bits(obs.masks, self.lm.vocab_size))
        elif self._flat is not None and self.training:  # TRPO's line search: other weights at every call
            ids, lengths = split_observation(obs)
            logits = self._derivable(lambda: self._logits(self._fresh_hidden(ids, lengths), self.lm))
        else:
            logits = self._logits(self._last_hidden(*split_observation(obs)), self._acting_lm())
        assert isinstance(self.action_dist, CategoricalDistribution)
        return self.action_dist.proba_distribution(action_logits=logits)

    def predict_values(self, obs: PyTorchObs | PackedBatch) -> Tensor:
        """V(s) for each observation, shape (N, 1); 0 for idle rows. With `defer_values`, computed when looked at."""
        if self._flat is not None:
            self._flat.push()
        if isinstance(obs, PackedBatch):
            with self._autocast():
                hidden = None if self.has_own_critic else self._packed_hidden(obs)
                return self._packed_values(obs, hidden)[:, None]
        ids, lengths = split_observation(obs)
        if self._own["defer_values"] and not torch.is_grad_enabled():
            return LazyValues.of(torch.no_grad()(lambda: self._state_values(ids, lengths)), len(ids))
        return self._state_values(ids, lengths)

    def _state_values(self, ids: Tensor, lengths: Tensor) -> Tensor:
        hidden = None if self.has_own_critic else self._last_hidden(ids, lengths)
        return self._values(hidden, ids, lengths)

    def _last_hidden(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """The actor's hidden state at each row's last token, (N, H): from the cache, or afresh where gradients are due."""
        with self._autocast():
            if torch.is_grad_enabled():
                return self._fresh_hidden(ids, lengths)
            return self._current_decoder().hidden(ids, lengths)

    def _current_decoder(self) -> CachedDecoder:
        """The decoder; in mixed precision one on a copy of the weights, made when the policy is on its device."""
        if self.mixed_precision == "bf16" and (self._copy is None or self._copy.device != self.device):
            self._copy = DecodingCopy(self.lm)
            old = self._decoder
            self._decoder = CachedDecoder(self._copy, old.max_length, old.use_cache, refresh=self._copy.update)
        return self._decoder

    def _fresh_hidden(self, ids: Tensor, lengths: Tensor) -> Tensor:
        return self._packed_hidden(pack_ends(sequences_of(ids, lengths), ids.device)) * (lengths > 0)[:, None]

    def _acting_lm(self) -> CausalLM:
        """The model that `_last_hidden` asks, whose head goes with its states."""
        return self.lm if torch.is_grad_enabled() else self._current_decoder().lm

    def _logits(self, hidden: Tensor, lm: CausalLM) -> Tensor:
        """Logits over the temperature, float32."""
        with self._autocast():
            return lm.logits(hidden).float() / self.temperature

    def _values(self, hidden: Tensor | None, ids: Tensor, lengths: Tensor) -> Tensor:
        """V at each row's last token, (N, 1), float32; 0 for idle rows."""
        with self._autocast():
            if isinstance(self.critic, CriticNetwork):
                values = self.critic(pack_ends(sequences_of(ids, lengths), ids.device))
            else:
                assert hidden is not None
                values = self._head_values(hidden)
        return (values * (lengths > 0))[:, None]

    def _head_values(self, hidden: Tensor) -> Tensor:
        if self.critic is None:
            return hidden.new_zeros(len(hidden), dtype=torch.float32)
        # TRPO moves what it knows as the actor's; a trunk that the value loss moves as well would leave its trust region
        detached = self._own["critic"] == "detached_head" or self._own["second_derivatives"]
        states = hidden.detach() if detached else hidden
        return self.critic(states)[:, 0].float()

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        return autocast(self.device, self.mixed_precision)

    # ------------------------------------------------------------------------------------------------ learning
    def evaluate_actions(self, obs: PyTorchObs | PackedBatch, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Values, log-probs and entropies of actions taken.

        Args:
            obs: A packed batch of whole episode segments, or a dictionary of observations, each read from its start.
            actions: Tokens taken, shape (n,); of a packed batch, its `targets`.

        Returns:
            Values (n,), log π (n,) and entropies (n,) in nats, float32.
        """
        if isinstance(obs, PackedBatch):
            evaluate = self._evaluate_packed if self._own["second_derivatives"] else self._micro_batches
            values, log_probs, entropy, *exact_kl = evaluate(obs)
            log_probs = self._with_auxiliary_losses(obs, log_probs, exact_kl[0] if exact_kl else None)
            return values, log_probs, entropy if self.entropy_grad else entropy.detach()
        ids, lengths = split_observation(obs)
        hidden = self._last_hidden(ids, lengths)
        busy = lengths > 0
        with self._autocast():
            log_probs, entropy = self._log_probs(hidden, actions.long().flatten())
        values = self._values(hidden, ids, lengths)[:, 0]
        return values, torch.where(busy, log_probs, 0.0), torch.where(busy, entropy, 0.0)

    def _with_auxiliary_losses(self, batch: PackedBatch, log_probs: Tensor, exact_kl: Tensor | None) -> Tensor:
        """The log-probs, whose backward pass brings the gradients of the further terms of the loss."""
        if not torch.is_grad_enabled() or not log_probs.requires_grad:
            return log_probs
        if self._own["kl_loss"] is not None and batch.kl_coef:
            term = kl_loss(batch, log_probs, exact_kl, self._own["kl_loss"])
            self.auxiliary_losses.setdefault("train/kl_loss", []).append(term.item())
            log_probs = ride(log_probs, batch.kl_coef * term)
        if self.mix is not None:
            with self._autocast():
                term = self.mix.loss(self.lm)
            self.auxiliary_losses.setdefault("train/ptx_loss", []).append(term.item())
            log_probs = ride(log_probs, self.mix.coef * term)
        return log_probs

    def _evaluate_packed(self, batch: PackedBatch) -> tuple[Tensor, ...]:
        """Values, log-probs, entropies; where the batch has a reference, the exact KL to it as well; each (n,)."""
        with self._autocast():
            hidden = self._packed_hidden(batch)
            log_probs, entropy = self._log_probs(hidden, batch.targets, batch.masks)
            values = self._packed_values(batch, hidden)
            if batch.reference is None:
                return values, log_probs, entropy
            return values, log_probs, entropy, self._exact_kl(batch, hidden)

    def _exact_kl(self, batch: PackedBatch, hidden: Tensor) -> Tensor:
        """KL(π‖π_ref) of the whole distributions before each scored token, (n,)."""
        with batch.reference.frozen() as ref_lm:
            ref_hidden = packed_states(ref_lm.trunk, batch)[batch.index]
        return head_kl(self.lm, hidden, ref_lm, ref_hidden, self.temperature, batch.masks)

    @torch.no_grad()
    def exact_kl(
        self,
        reference: Reference,
        sequences: list[list[int]],
        starts: list[int],
        masks: list[NDArray[np.uint8]] | None = None,
    ) -> NDArray[np.float32]:
        """KL(π‖π_ref) of the whole distributions before every token from `starts` on, flat, sequence by sequence.

        Args:
            reference: π_ref.
            sequences: As in `score_segments`.
            starts: As there.
            masks: As there.
        """
        parts: list[Tensor] = [torch.empty(0)] * len(sequences)

        def run(group: list[int]) -> None:
            batch = self._packed_segments(group, sequences, starts, masks)
            with self._autocast():
                batch = dataclasses.replace(batch, reference=reference)
                kl = self._exact_kl(batch, self._packed_hidden(batch))
            for i, part in zip(group, kl.cpu().split(batch.counts), strict=True):
                parts[i] = part

        in_groups([len(s) for s in sequences], SCORE_TOKENS, self.device, run)
        return torch.cat(parts).numpy()

    def _packed_segments(
        self,
        group: list[int],
        sequences: list[list[int]],
        starts: list[int],
        masks: list[NDArray[np.uint8]] | None,
    ) -> PackedBatch:
        batch = pack([sequences[i] for i in group], [starts[i] for i in group], self.device)
        if masks is None:
            return batch
        bits = np.concatenate([masks[i] for i in group])
        return dataclasses.replace(batch, masks=torch.from_numpy(bits).to(self.device))

    def _packed_hidden(self, batch: PackedBatch) -> Tensor:
        """The actor's hidden states (n, H) that predict the scored tokens."""
        with self._autocast(), self._attention():
            return packed_states(self.lm.trunk, batch)[batch.index]

    def _packed_values(self, batch: PackedBatch, hidden: Tensor | None) -> Tensor:
        """V before each scored token, (n,)."""
        if isinstance(self.critic, CriticNetwork):
            values: Tensor = self.critic(batch)
            return values
        assert hidden is not None
        return self._head_values(hidden)

    def _log_probs(self, hidden: Tensor, tokens: Tensor, masks: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Log π of tokens and the entropies, (n,)."""
        fused = not self._own["second_derivatives"]
        return head_log_probs(self.lm, hidden, tokens, self.temperature, self.entropy_grad, fused, masks)

    def _attention(self) -> contextlib.AbstractContextManager[Any]:
        """Attention whose gradient has a gradient, where one is needed."""
        twice = self._own["second_derivatives"] and torch.is_grad_enabled()
        return sdpa_kernel(SDPBackend.MATH) if twice else contextlib.nullcontext()

    @torch.no_grad()
    def score_segments(
        self, sequences: list[list[int]], starts: list[int], masks: list[NDArray[np.uint8]] | None = None
    ) -> tuple[Any, Any]:
        """Log π and V of every token from `starts` on, as training computes them.

        Args:
            sequences: Prompt and response ids.
            starts: For each, the index of the first token asked about.
            masks: For each, which tokens might be chosen at each of its steps, as bits; None: all.

        Returns:
            (log π, V), flat float32 arrays, sequence by sequence.
        """
        parts: list[tuple[Tensor, Tensor]] = [(torch.empty(0), torch.empty(0))] * len(sequences)

        def run(group: list[int]) -> None:
            batch = self._packed_segments(group, sequences, starts, masks)
            if self.rescores_log_probs or not isinstance(self.critic, CriticNetwork):
                values, log_probs, *_ = self._evaluate_packed(batch)
            else:  # the collected log-probs are good: only the critic is asked
                with self._autocast():
                    values = self.critic(batch)
                log_probs = torch.zeros_like(values)
            split = (log_probs.cpu().split(batch.counts), values.cpu().split(batch.counts))
            for i, *pair in zip(group, *split, strict=True):
                parts[i] = (pair[0], pair[1])

        in_groups([len(s) for s in sequences], SCORE_TOKENS, self.device, run)
        return torch.cat([p[0] for p in parts]).numpy(), torch.cat([p[1] for p in parts]).numpy()

    def greedy_episodes(self, task: TextTask, prompts: list[Prompt]) -> list[Episode]:
        """The likeliest token at every step, from each prompt to the end, scored; the sampler's state is untouched."""
        half = self.mixed_precision == "bf16"
        return respond(self.lm, task, prompts, seed=0, deterministic=True, mixed_precision=half)

    def set_training_mode(self, mode: bool) -> None:
        """Train or eval mode; there is no dropout, but the cache is dropped, for the weights are about to change."""
        if mode:
            self._decoder.clear()
        elif self._flat is not None:
            self._flat.release()
        super().set_training_mode(mode)

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """`torch.nn.Module.named_parameters`; for TRPO as `second_derivatives` says."""
        if not self._own["second_derivatives"] or not hasattr(self, "optimizer"):
            yield from super().named_parameters(*args, **kwargs)
            return
        if self._flat is None:
            self._flat = FlatParameters(self.actor)
        yield "actor", self._flat.vector
        if self.critic is not None:
            yield from ((f"value.{name}", p) for name, p in self.critic.named_parameters() if p.requires_grad)

    def _derivable(self, function: Callable[[], Tensor]) -> Tensor:
        """`function()`, whose gradient reaches what `named_parameters` gave."""
        return function() if self._flat is None else self._flat.call(function)

    # ------------------------------------------------------------------------------------------------ saving
    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """All weights, or with LoRA the trainable ones: the base model is named by `model` and never changes."""
        if self._flat is not None:
            self._flat.push()
        state: dict[str, Any] = super().state_dict(*args, **kwargs)
        if not self._own["lora_rank"]:
            return state
        frozen = self._frozen_names()
        return {name: value for name, value in state.items() if name not in frozen}

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Loads what `state_dict` gave.

        Raises:
            RuntimeError: with `strict`, names are missing or unknown.
        """
        self._decoder.clear()
        if self._flat is not None:
            self._flat.forget()
        result = super().load_state_dict(state_dict, strict=False, assign=assign)
        missing = set(result.missing_keys) - (self._frozen_names() if self._own["lora_rank"] else set())
        if strict and (missing or result.unexpected_keys):
            raise RuntimeError(
                f"The saved weights do not fit this policy: missing {sorted(missing)[:5]}, "
                f"unknown {result.unexpected_keys[:5]}. Were they saved with the same model, critic and lora_rank?"
            )
        return result

    def _frozen_names(self) -> set[str]:
        frozen = {id(p) for _, p in nn.Module.named_parameters(self) if not p.requires_grad}
        state = super().state_dict(keep_vars=True)
        return {name for name, value in state.items() if id(value) in frozen}

    def merged_actor(self) -> PreTrainedModel:
        """The actor as an ordinary causal LM: itself, or with LoRA a copy with the adapters merged in."""
        if self._flat is not None:
            self._flat.push()
        if self._peft is None:
            return self.actor
        merged = copy.deepcopy(self._peft[0]).merge_and_unload()
        assert isinstance(merged, PreTrainedModel)
        return merged

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {
            "observation_space": self.observation_space,
            "action_space": self.action_space,
            "lr_schedule": self._dummy_schedule,
            "optimizer_class": self.optimizer_class,
            "optimizer_kwargs": self.optimizer_kwargs,
            **self._own,
        }


def scale_learning_rates(optimizer: torch.optim.Optimizer) -> None:
    """Has every step take each group's learning rate times its ``lr_scale``: SB3 sets one rate for all groups."""

    def scale(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            group["unscaled_lr"] = group["lr"]
            group["lr"] = group["lr"] * group["lr_scale"]

    def restore(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            group["lr"] = group.pop("unscaled_lr")

    optimizer.register_step_pre_hook(scale)
    optimizer.register_step_post_hook(restore)


def _drop_gradients(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    optimizer.zero_grad(set_to_none=True)
