"""`LLMQPolicy`: a causal LM as the Q-network of stock DQN and QR-DQN.

The environment pays β·log π_ref(a|s) + 1[last]·R. Soft Q-learning with entropy coefficient τ = β on that reward has the
fixed point Q*(s,a) = β·log π*(a|s) + V*(s) with π* ∝ π_ref·exp(R/β), the optimum of KL-regularized RLHF (Haarnoja et al.
2017, https://arxiv.org/abs/1702.08165; Rafailov et al. 2024, "From r to Q*", https://arxiv.org/abs/2404.12358). So the
network is

    Q(s,a) = τ·log π_θ(a|s) + V_θ(s),

π_θ being the language model and V_θ a critic. With θ the reference's weights and V = 0 this *is* the solution for R = 0, and
softmax(Q/τ) = π_θ is what samples actions. The soft value τ·log Σ_a exp(Q(s,a)/τ) is V_θ(s).

Stock DQN takes the maximum of what the target network gives over its last axis. Our target network gives one column: V_θ(s)
for a soft backup, max_a Q(s,a) for a hard one.
"""

from __future__ import annotations

from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import Tensor, nn

from agents.policies.actor import PlainActor, load_actor_network
from agents.policies.critic import Critic, CriticSource, make_critic
from agents.policies.observations import sequences_of, split_observation
from agents.policies.optimizers import optimizer_defaults
from agents.policies.sampled_actions import ActionTensor
from agents.rules import check_arguments
from llm_env.default_task import DEFAULT_REWARD_MODEL
from llm_env.lm.causal_lm import CausalLM
from llm_env.lm.decoding import CachedDecoder
from llm_env.lm.packed_attention import packed_states
from llm_env.lm.packing import PackedBatch, pack_ends
from llm_env.lm.sampling import sample_tokens

BACKUPS = ("soft", "hard")


class TextQNetwork(nn.Module):
    """Q(s,·) = τ·log π_θ(·|s) + V_θ(s), or its quantiles with V_θ's quantiles in the place of V_θ.

    The quantiles of all actions in a state have one shape: a head of n_quantiles values for every token would be
    n_quantiles LM heads.

    Args:
        lm: The causal LM π_θ, which is trained.
        critic: V_θ: a network of its own, or a linear head on the LM's hidden states.
        q_scale: τ, in score per nat.
        temperature: Divides the logits of π_θ.
        n_quantiles: Number of quantiles of each state's value, for QR-DQN. 0: plain Q-values, for DQN.
        backup: Makes the network a target network, which gives one column: ``soft``, V_θ(s); ``hard``, max_a Q(s,a). None: the
            network gives a column for each token.
    """

    def __init__(
        self,
        lm: CausalLM,
        critic: Critic,
        q_scale: float,
        temperature: float,
        n_quantiles: int = 0,
        backup: str | None = None,
    ) -> None:
        super().__init__()
        self.lm = lm
        self.actor = lm.model
        self.critic = critic
        self.q_scale = q_scale
        self.temperature = temperature
        self.backup = backup
        self.quantiles: nn.Linear | None = None
        if n_quantiles:  # offsets from V_θ, which start at zero: all quantiles equal
            self.quantiles = nn.Linear(critic.width, n_quantiles)
            nn.init.zeros_(self.quantiles.weight)
            nn.init.zeros_(self.quantiles.bias)

    def forward(self, obs: PyTorchObs | PackedBatch) -> Tensor:
        """Gives Q-values (n, V), or quantiles (n, n_quantiles, V); a target network's last axis has one entry.

        Args:
            obs: Observations of `LLMText-v0`, n of them, or a packed batch with n tokens to score.
        """
        if not isinstance(obs, PackedBatch):
            ids, lengths = split_observation(obs)
            obs = pack_ends(sequences_of(ids, lengths), ids.device)
        hidden: Tensor | None = None  # (n, H); a soft target with a critic of its own needs no pass through the LM
        if self.backup != "soft" or not self.critic.reads_text:
            hidden = packed_states(self.lm.trunk, obs)[obs.index]
        values = self._values(obs, hidden)  # (n,) or (n, n_quantiles)
        if self.backup == "soft":  # τ·log Σ_a exp(Q(s,a)/τ) is V
            return values[..., None]
        assert hidden is not None
        # τ·log π_θ for every token, (n, V)
        advantages = self.q_scale * torch.log_softmax(self.lm.logits(hidden).float() / self.temperature, -1)
        if self.backup == "hard":
            advantages = advantages.amax(-1, keepdim=True)
        return values[..., None] + (advantages if self.quantiles is None else advantages[:, None])

    def _values(self, batch: PackedBatch, hidden: Tensor | None) -> Tensor:
        """Gives V_θ, shape (n,), or its quantiles, shape (n, n_quantiles)."""
        states = self.critic.states(batch, hidden)
        values = self.critic.values_of(states)
        return values if self.quantiles is None else values[:, None] + self.quantiles(states).float()

    def set_training_mode(self, mode: bool) -> None:
        """Sets train or eval mode, as stable-baselines3 asks; there is no dropout that would differ."""
        self.train(mode)


def _check_choices(backup: str, critic: str) -> None:
    """Refuses a backup that there is not, and a critic that gives no V of its own."""
    if backup not in BACKUPS:
        raise ValueError(f"backup={backup!r} is not known; use one of {', '.join(BACKUPS)}.")
    if critic == "top_layers":
        raise ValueError(
            "critic='top_layers': a Q-network's V has no layers of its own on the actor's. Choose another."
        )
    if critic == "none":
        raise ValueError("critic='none': Q = τ·log π + V needs a V. Choose reward_model, actor, head or detached_head.")


class LLMQPolicy(PlainActor, BasePolicy):
    """Q-network, target network, and decoding with a cache, for `DQN` and `QRDQN`.

    Acting samples from softmax(Q/τ) = π_θ, which is what explores: SB3's ε, uniformly random tokens, is best left at 0.

    Args:
        observation_space: The environment's, of `LLMText-v0`.
        action_space: The environment's, of `LLMText-v0`.
        lr_schedule: Learning rate as a function of the progress remaining, 1 to 0.
        model: Folder or hub id of the actor π_θ. None: the embedded default.
        temperature: Divides the logits of π_θ; must be the environment's, since the KL compares the two.
        critic: V_θ: ``reward_model``, ``actor``, ``head`` or ``detached_head``; see `agents.policies.critic`.
        reward_model: Folder or hub id that a ``reward_model`` critic starts from. None: the embedded default, if `model` is it
            too.
        reward_shift: What the environment adds to the reward model's score, with which such a critic starts.
        reward_scale: What the environment multiplies the sum by; the same.
        q_scale: τ, in score per nat. The environment's β makes the KL-regularized optimum the fixed point.
        backup: What the target network gives: ``soft``, V(s), or ``hard``, max_a Q(s,a).
        n_quantiles: Number of quantiles, for QR-DQN. 0: plain Q-values, for DQN.
        trust_remote_code: Whether model code from a hub may run.
        optimizer_class: Default: `torch.optim.AdamW`, without weight decay, eps 1e-5.
        optimizer_kwargs: For the optimizer, besides the learning rate.

    Raises:
        FileNotFoundError, ValueError: something cannot be loaded, or a setting breaks its rule.
    """

    mixed_precision = "no"
    """Arithmetic is float32: bf16 would round small differences of Q away."""

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Discrete,
        lr_schedule: Schedule,
        *,
        model: str | None = None,
        temperature: float = 1.0,
        critic: str = "reward_model",
        reward_model: str | None = None,
        reward_shift: float = 0.0,
        reward_scale: float = 1.0,
        q_scale: float = 0.05,
        backup: str = "soft",
        n_quantiles: int = 0,
        trust_remote_code: bool = False,
        optimizer_class: type[torch.optim.Optimizer] = torch.optim.AdamW,
        optimizer_kwargs: dict[str, Any] | None = None,
    ) -> None:
        _check_choices(backup, critic)
        check_arguments({"q_scale": q_scale, "temperature": temperature, "trust_remote_code": trust_remote_code})
        check_arguments({"reward_shift": reward_shift, "reward_scale": reward_scale})
        if n_quantiles:
            check_arguments({"n_quantiles": n_quantiles})
        if reward_model is None and model is None:
            reward_model = DEFAULT_REWARD_MODEL
        if optimizer_kwargs is None:
            optimizer_kwargs = optimizer_defaults(optimizer_class)
        super().__init__(
            observation_space, action_space, optimizer_class=optimizer_class, optimizer_kwargs=optimizer_kwargs
        )
        self._arguments: dict[str, Any] = {
            "model": model,
            "temperature": temperature,
            "critic": critic,
            "reward_model": reward_model,
            "reward_shift": reward_shift,
            "reward_scale": reward_scale,
            "q_scale": q_scale,
            "backup": backup,
            "n_quantiles": n_quantiles,
            "trust_remote_code": trust_remote_code,
        }
        """The arguments that SB3 saves with a model, to make the same policy again."""
        self.n_quantiles = n_quantiles
        # Two copies of all weights; the target's follow as DQN and QR-DQN say, without gradients.
        self.q_net = self._network(None)
        self.q_net_target = self._network(backup)
        self.q_net_target.load_state_dict(self.q_net.state_dict())
        self.q_net_target.requires_grad_(False)
        self.q_net_target.set_training_mode(False)
        self.lm = self.q_net.lm  # what acts: softmax(Q/τ) = π_θ
        max_length = int(observation_space["input_ids"].shape[0])  # type: ignore[index]
        self._decoder = CachedDecoder(self.lm, max_length)
        self.optimizer = optimizer_class(self.q_net.parameters(), lr=lr_schedule(1), **optimizer_kwargs)  # type: ignore[call-arg]

    def _network(self, backup: str | None) -> TextQNetwork:
        """Loads an actor and a critic, and makes a Q-network (`backup` None) or a target network of them."""
        a = self._arguments
        lm = load_actor_network(a["model"], self.action_space, a["trust_remote_code"])
        source = CriticSource(
            lm.name,
            lm.hidden_size,
            a["reward_model"],
            a["trust_remote_code"],
            reward_shift=a["reward_shift"],
            reward_scale=a["reward_scale"],
        )
        critic = make_critic(a["critic"], source)
        return TextQNetwork(lm, critic, a["q_scale"], a["temperature"], self.n_quantiles, backup)

    @property
    def quantile_net(self) -> TextQNetwork:
        """The Q-network, by the name that QR-DQN reads."""
        return self.q_net

    @property
    def quantile_net_target(self) -> TextQNetwork:
        """The target network, by the name that QR-DQN reads."""
        return self.q_net_target

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> Tensor:
        """Chooses the next tokens, shape (N,), as `_predict` does."""
        return self._predict(obs, deterministic)

    @torch.no_grad()
    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> Tensor:
        """Chooses the next tokens (N,), which carry their log-probs: argmax Q, or a sample from softmax(Q/τ).

        V(s) is the same for all tokens, so that the LM's logits alone decide, and the critic is not asked.
        """
        temperature = self._arguments["temperature"]
        ids, lengths = split_observation(observation)  # (N, L), (N,)
        logits = self.lm.logits(self._decoder.hidden(ids, lengths)).float() / temperature  # (N, V)
        actions, log_probs = sample_tokens(logits, deterministic)
        return ActionTensor.carry(actions, log_probs, temperature)

    def set_training_mode(self, mode: bool) -> None:
        """Sets train or eval mode; training drops the cache, for the weights are about to change."""
        if mode:
            self._decoder.clear()
        self.q_net.set_training_mode(mode)
        self.training = mode

    def _get_constructor_parameters(self) -> dict[str, Any]:
        """Gives what SB3 saves with a model, to make the same policy again."""
        return {
            "observation_space": self.observation_space,
            "action_space": self.action_space,
            "lr_schedule": self._dummy_schedule,
            "optimizer_class": self.optimizer_class,
            "optimizer_kwargs": self.optimizer_kwargs,
            **self._arguments,
        }
