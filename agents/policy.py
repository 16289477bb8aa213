"""`LLMActorCriticPolicy`: a Hugging Face causal LM as a stable-baselines3 actor-critic policy."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import torch
from gymnasium import spaces
from peft import LoraConfig, get_peft_model
from stable_baselines3.common.distributions import CategoricalDistribution, Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from agents.carriers import ActionTensor, attach_scorer
from agents.critic import CRITICS, CriticNetwork, enable_checkpointing, load_critic, zero_head
from llm_env.decoding import CachedDecoder, sample_tokens
from llm_env.models import (
    DEFAULT_MODEL,
    DEFAULT_REWARD_MODEL,
    CausalLM,
    LoadSettings,
    load_causal_lm,
    shared_causal_lm,
)
from llm_env.packing import PackedBatch, head_log_probs, micro_batches, pack

SCORE_TOKENS = 16_384  # tokens scored at once after collection, padding included


class LLMActorCriticPolicy(ActorCriticPolicy):
    """Actor: a causal LM. Critic: a head on it or a network of its own.

    `forward`, `predict` and `predict_values` take `LLMText-v0` observations and decode with a key-value cache that
    follows the observations' content (`llm_env.decoding`). `evaluate_actions` takes them too, each read from its start,
    or a `PackedBatch` from `TokenRolloutBuffer`: then it makes one causal pass over whole episodes.

    All constructor arguments besides SB3's are names and numbers, so that `model.save` pickles no weights with them.

    Args:
        observation_space: The environment's.
        action_space: The environment's.
        lr_schedule: Learning rate as a function of the progress remaining.
        model: Folder or hub id of the actor. None: the embedded default.
        temperature: Divides the logits; must be the environment's.
        critic: ``reward_model``, ``actor``, ``head`` or ``detached_head``; see `agents.critic`.
        reward_model: Folder or hub id that a ``reward_model`` critic starts from. None: the embedded default, if
            `model` is it too.
        lora_rank: Rank r of LoRA adapters on all linear layers (Hu et al. 2021, https://arxiv.org/abs/2106.09685);
            0 trains all weights.
        lora_alpha: LoRA's α; None: 2r.
        reference_load: With LoRA, `LoadSettings` of the environment's reference as a tuple: the adapters are put into
            that very model, which is then the reference when they are switched off. None: a copy of one's own.
        mixed_precision: ``no``, or ``bf16``: weights in float32, arithmetic under autocast.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, a third more time.
        use_cache: False reads the whole prefix for every token: slow, for comparison.
        defer_values: A network critic is not asked while collecting (values are NaN there); the buffer has
            `score_segments` do it in large batches. Needs `TokenRolloutBuffer`.
        entropy_grad: Whether `evaluate_actions` gives an entropy with gradients; False saves time where ``ent_coef`` is 0.
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
        use_cache: bool = True,
        defer_values: bool = False,
        entropy_grad: bool = True,
        trust_remote_code: bool = False,
        optimizer_class: type[torch.optim.Optimizer] = torch.optim.AdamW,
        optimizer_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if critic not in CRITICS:
            raise ValueError(f"critic={critic!r} is not known; use one of {', '.join(CRITICS)}.")
        if mixed_precision not in ("no", "bf16"):
            raise ValueError(f"mixed_precision={mixed_precision!r} is not known; use 'no' or 'bf16'.")
        if lora_rank < 0:
            raise ValueError(f"lora_rank={lora_rank} must be at least 0 (0 trains all weights).")
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
            "use_cache": use_cache,
            "defer_values": defer_values,
            "entropy_grad": entropy_grad,
            "trust_remote_code": trust_remote_code,
        }
        self.temperature = temperature
        self.mixed_precision = mixed_precision
        self.entropy_grad = entropy_grad
        if optimizer_kwargs is None:
            optimizer_kwargs = {"eps": 1e-5, "weight_decay": 0.0}
            if issubclass(optimizer_class, torch.optim.Adam | torch.optim.AdamW):
                optimizer_kwargs["fused"] = True
            else:
                optimizer_kwargs = {}
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
        vocab_size = self.lm.vocab_size
        if not isinstance(self.action_space, spaces.Discrete) or int(self.action_space.n) != vocab_size:
            raise ValueError(
                f"The environment has {getattr(self.action_space, 'n', self.action_space)} actions, model={name!r} has "
                f"{vocab_size} tokens. Give the policy the environment's model: policy_kwargs={{'model': …}}."
            )
        hidden_size = int(self.actor.get_output_embeddings().weight.shape[1])
        self.critic: nn.Module
        if own["critic"] in ("head", "detached_head"):
            self.critic = zero_head(hidden_size)
        else:
            self.critic = load_critic(own["critic"], name, own["reward_model"], own["trust_remote_code"])
        if own["gradient_checkpointing"]:
            enable_checkpointing(self.actor)
            if isinstance(self.critic, CriticNetwork):
                enable_checkpointing(self.critic.trunk)
        max_length = int(self.observation_space["input_ids"].shape[0])  # type: ignore[index]
        self._decoder = CachedDecoder(self.lm, max_length, use_cache=own["use_cache"])
        parameters = [p for p in self.parameters() if p.requires_grad]
        self.optimizer = self.optimizer_class(parameters, lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]

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
        alpha = own["lora_alpha"] if own["lora_alpha"] is not None else 2 * own["lora_rank"]
        config = LoraConfig(
            r=own["lora_rank"],
            lora_alpha=alpha,
            lora_dropout=0.0,
            target_modules="all-linear",
            fan_in_fan_out=any(isinstance(m, Conv1D) for m in lm.model.modules()),
            task_type="CAUSAL_LM",
        )
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
    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Samples the next tokens.

        Args:
            obs: Dictionary of ``input_ids`` (N, L) and ``length`` (N, 1).
            deterministic: Take the likeliest token.

        Returns:
            Actions (N,), which carry their log-probs to the environment; values (N, 1); log-probs (N,). Idle rows get 0.
        """
        ids, lengths = _split(obs)
        hidden = self._last_hidden(ids, lengths)
        busy = lengths > 0
        actions, log_probs = torch.zeros_like(lengths), torch.zeros(len(lengths), device=lengths.device)
        if busy.any():  # idle rows cost no head and no sampling
            actions[busy], log_probs[busy] = sample_tokens(self._logits(hidden[busy]), deterministic)
        if self._own["defer_values"] and self.has_own_critic:
            values = torch.full((len(lengths), 1), torch.nan, device=self.device)
        else:
            values = self._values(hidden, ids, lengths)
        carried = ActionTensor.carry(actions, log_probs, self.temperature)
        return carried, values, attach_scorer(log_probs, self)

    def get_distribution(self, obs: PyTorchObs) -> Distribution:
        """π(·|s) for each observation; uniform for idle rows."""
        ids, lengths = _split(obs)
        hidden = self._last_hidden(ids, lengths)
        assert isinstance(self.action_dist, CategoricalDistribution)
        return self.action_dist.proba_distribution(action_logits=self._logits(hidden))

    def predict_values(self, obs: PyTorchObs) -> Tensor:
        """V(s) for each observation, shape (N, 1); 0 for idle rows."""
        ids, lengths = _split(obs)
        hidden = None if self.has_own_critic else self._last_hidden(ids, lengths)
        return self._values(hidden, ids, lengths)

    def _last_hidden(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """The actor's hidden state at each row's last token, (N, H): from the cache, or afresh where gradients are due."""
        with self._autocast():
            if torch.is_grad_enabled():
                return self._fresh_hidden(ids, lengths)
            return self._decoder.hidden(ids, lengths)

    def _fresh_hidden(self, ids: Tensor, lengths: Tensor) -> Tensor:
        longest = max(1, int(lengths.max()))
        batch = _unpadded(ids[:, :longest], lengths)
        states = self.lm.hidden(batch, use_cache=False).last_hidden_state
        rows = torch.arange(len(ids), device=states.device)
        return states[rows, (lengths - 1).clamp(min=0)] * (lengths > 0)[:, None]

    def _logits(self, hidden: Tensor) -> Tensor:
        with self._autocast():
            logits = self.lm.logits(hidden)
        return logits.float() / self.temperature

    def _values(self, hidden: Tensor | None, ids: Tensor, lengths: Tensor) -> Tensor:
        """V at each row's last token, (N, 1), float32; 0 for idle rows."""
        with self._autocast():
            if isinstance(self.critic, CriticNetwork):
                longest = max(1, int(lengths.max()))
                rows = torch.arange(len(ids), device=ids.device)
                batch = PackedBatch(
                    _unpadded(ids[:, :longest], lengths), rows, (lengths - 1).clamp(min=0), rows, lengths
                )
                values = self.critic(batch)
            else:
                assert hidden is not None
                values = self._head_values(hidden)
        return (values * (lengths > 0))[:, None]

    def _head_values(self, hidden: Tensor) -> Tensor:
        states = hidden.detach() if self._own["critic"] == "detached_head" else hidden
        return self.critic(states)[:, 0].float()

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.mixed_precision == "bf16")

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
            return self._evaluate_packed(obs)
        ids, lengths = _split(obs)
        hidden = self._last_hidden(ids, lengths)
        busy = lengths > 0
        with self._autocast():
            log_probs, entropy = head_log_probs(
                self.lm, hidden, actions.long().flatten(), self.temperature, self.entropy_grad
            )
        values = self._values(hidden, ids, lengths)[:, 0]
        return values, torch.where(busy, log_probs, 0.0), torch.where(busy, entropy, 0.0)

    def _evaluate_packed(self, batch: PackedBatch) -> tuple[Tensor, Tensor, Tensor]:
        with self._autocast():
            hidden = batch.select(self.lm.hidden(batch.input_ids, use_cache=False).last_hidden_state)
            log_probs, entropy = head_log_probs(self.lm, hidden, batch.targets, self.temperature, self.entropy_grad)
            values = self.critic(batch) if self.has_own_critic else self._head_values(hidden)
        return values, log_probs, entropy

    @torch.no_grad()
    def score_segments(self, sequences: list[list[int]], starts: list[int]) -> tuple[Any, Any]:
        """Log π and V of every token from `starts` on, as training computes them.

        Args:
            sequences: Prompt and response ids.
            starts: For each, the index of the first token asked about.

        Returns:
            (log π, V), flat float32 arrays, sequence by sequence.
        """
        counts = [len(s) - start for s, start in zip(sequences, starts, strict=True)]
        parts: list[tuple[Tensor, Tensor]] = [(torch.empty(0), torch.empty(0))] * len(sequences)
        for group in micro_batches([len(s) for s in sequences], SCORE_TOKENS):
            batch = pack([sequences[i] for i in group], [starts[i] for i in group], self.device)
            if self.rescores_log_probs or not self.has_own_critic:
                values, log_probs, _ = self._evaluate_packed(batch)
            else:  # the collected log-probs are good: only the critic is asked
                with self._autocast():
                    values = self.critic(batch)
                log_probs = torch.zeros_like(values)
            sizes = [counts[i] for i in group]
            for i, one, other in zip(group, log_probs.cpu().split(sizes), values.cpu().split(sizes), strict=True):
                parts[i] = (one, other)
        return torch.cat([p[0] for p in parts]).numpy(), torch.cat([p[1] for p in parts]).numpy()

    def set_training_mode(self, mode: bool) -> None:
        """Train or eval mode; there is no dropout, but the cache is dropped, for the weights are about to change."""
        if mode:
            self._decoder.clear()
        super().set_training_mode(mode)

    # ------------------------------------------------------------------------------------------------ saving
    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """All weights, or with LoRA the trainable ones: the base model is named by `model` and never changes."""
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
        result = super().load_state_dict(state_dict, strict=False, assign=assign)
        missing = set(result.missing_keys) - (self._frozen_names() if self._own["lora_rank"] else set())
        if strict and (missing or result.unexpected_keys):
            raise RuntimeError(
                f"The saved weights do not fit this policy: missing {sorted(missing)[:5]}, "
                f"unknown {result.unexpected_keys[:5]}. Were they saved with the same model, critic and lora_rank?"
            )
        return result

    def _frozen_names(self) -> set[str]:
        frozen = {id(p) for p in self.parameters() if not p.requires_grad}
        state = super().state_dict(keep_vars=True)
        return {name for name, value in state.items() if id(value) in frozen}

    def merged_actor(self) -> PreTrainedModel:
        """The actor as an ordinary causal LM: itself, or with LoRA a copy with the adapters merged in."""
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


def _split(obs: PyTorchObs) -> tuple[Tensor, Tensor]:
    """``input_ids`` (N, L) and ``length`` (N,)."""
    assert isinstance(obs, dict)
    ids = obs["input_ids"].long()
    return ids, obs["length"].long().reshape(len(ids))


def _unpadded(ids: Tensor, lengths: Tensor) -> Tensor:
    """The same ids with 0 in the padding, whose value no embedding has."""
    place = torch.arange(ids.shape[1], device=ids.device)
    return ids.masked_fill(place >= lengths[:, None], 0)
