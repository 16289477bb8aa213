"""Critics: V(s) at every position of a text.

| name | network | gradients of the value loss |
|---|---|---|
| ``head`` | linear head on the actor's trunk | reach the trunk |
| ``detached_head`` | the same | stop at the head |
| ``reward_model`` | own network, starts as the reward model | its own |
| ``actor`` | own network, starts as the actor's trunk, with a head of zeros | its own |
| ``top_layers`` | k blocks of its own on the actor's lower layers | its own; stop at the actor's layers |
| ``none`` | there is none, all values are 0: for advantages that need no critic | |

Heads that start at zero follow "The N Implementation Details of RLHF with PPO" (Huang et al. 2023); a critic that
starts from the reward model follows Stiennon et al. 2020 (https://arxiv.org/abs/2009.01325), appendix G.1.

A new critic is a subclass of `Critic` and a row in `CRITICS`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from agents.policies.top_layers import with_own_top
from llm_env.lm.causal_lm import load_causal_lm
from llm_env.lm.loading import load_config, load_weights
from llm_env.lm.names import LoadSettings
from llm_env.lm.packed_attention import packed_states, recompute_contexts
from llm_env.lm.packing import PackedBatch
from llm_env.reward.classifier import attach_mlp_head
from llm_env.reward.heads import ScoreHead
from llm_env.reward.models import scalar_head


class Critic(nn.Module, ABC):
    """V(s) for positions of packed texts, differentiable in the critic's parameters."""

    reads_text = False
    """Whether it makes a pass of its own over the text; if not, it works on the actor's hidden states."""
    width = 0
    """H, the width of its states."""

    @abstractmethod
    def states(self, batch: PackedBatch | None, hidden: Tensor | None) -> Tensor:
        """What the head reads at the n positions: hidden states, shape (n, H).

        Args:
            batch: The texts; needed if `reads_text`.
            hidden: The actor's last hidden states at the positions, shape (n, H); needed if not.
        """

    @abstractmethod
    def values_of(self, states: Tensor) -> Tensor:
        """V from what `states` gave, in score, shape (n,), float32."""

    def forward(self, batch: PackedBatch | None, hidden: Tensor | None) -> Tensor:
        """V at the n positions, in score, shape (n,), float32."""
        return self.values_of(self.states(batch, hidden))


class NoCritic(Critic):
    """All values are 0."""

    def states(self, batch: PackedBatch | None, hidden: Tensor | None) -> Tensor:
        """The actor's states, of which nothing is read."""
        assert hidden is not None
        return hidden

    def values_of(self, states: Tensor) -> Tensor:
        """Zeros."""
        return states.new_zeros(len(states)).float()


class HeadCritic(nn.Linear, Critic):
    """A linear head on the actor's hidden states, which starts at zero.

    Args:
        hidden_size: Width of the hidden states.
        detach: Whether gradients of the value loss stop at the head, instead of reaching the actor's trunk.
    """

    def __init__(self, hidden_size: int, detach: bool = False) -> None:
        nn.Linear.__init__(self, hidden_size, 1)
        # All values are 0 at first, so the first advantages are the returns and not a random head's noise.
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)
        self.detach = detach
        self.width = hidden_size

    def states(self, batch: PackedBatch | None, hidden: Tensor | None) -> Tensor:
        """The actor's hidden states (n, H), with or without their gradients."""
        assert hidden is not None
        return hidden.detach() if self.detach else hidden

    def values_of(self, states: Tensor) -> Tensor:
        """The head's output, shape (n,)."""
        # Not nn.Linear's `forward`, which is overridden below. (n, H) -> (n, 1) -> (n,)
        return nn.functional.linear(states, self.weight, self.bias)[:, 0].float()

    # Again, because nn.Linear's comes first among the bases.
    def forward(self, batch: PackedBatch | None, hidden: Tensor | None) -> Tensor:  # type: ignore[override]
        """V at the n positions, shape (n,)."""
        return self.values_of(self.states(batch, hidden))


class CriticNetwork(Critic):
    """A critic of its own: a decoder trunk with a scalar head at every position.

    Args:
        trunk: Maps input ids (B, T) to hidden states (B, T, H), causally.
        head: Linear or an MLP, H to 1.
        mean: Subtracted from the head's output, in the reward model's raw score: its normalization, and the task's shift.
        std: Divides what is left: its normalization, and the task's scale; above 0.
    """

    reads_text = True

    def __init__(self, trunk: nn.Module, head: nn.Linear | ScoreHead, mean: float = 0.0, std: float = 1.0) -> None:
        super().__init__()
        self.width = head.in_features
        self.trunk = trunk
        self.head = head
        self.mean = mean
        self.std = std

    def states(self, batch: PackedBatch | None, hidden: Tensor | None) -> Tensor:
        """The trunk's hidden states before each scored token, (n, H)."""
        assert batch is not None
        return packed_states(self.trunk, batch)[batch.index]

    def values_of(self, states: Tensor) -> Tensor:
        """The head's output, normalized, shape (n,)."""
        values: Tensor = (self.head(states)[:, 0].float() - self.mean) / self.std
        return values


@dataclass(frozen=True)
class CriticSource:
    """What a critic can be made from.

    Attributes:
        model: Folder or hub id of the actor.
        hidden_size: Width of its hidden states.
        reward_model: Folder or hub id of the reward model; None: there is none to start from.
        trust_remote_code: Whether model code from a hub may run.
        trunk: The actor's trunk, whose lower layers a ``top_layers`` critic reads; None: there is none to share.
        layers: k, the blocks that are a ``top_layers`` critic's own.
        reward_shift: What the environment adds to the reward model's score.
        reward_scale: What it multiplies the sum by; above 0.
    """

    model: str
    hidden_size: int
    reward_model: str | None = None
    trust_remote_code: bool = False
    trunk: nn.Module | None = None
    layers: int = 1
    reward_shift: float = 0.0
    reward_scale: float = 1.0

    @property
    def load(self) -> LoadSettings:
        """Critics are trained in float32; the policy moves them to its device."""
        return LoadSettings("float32", "cpu", self.trust_remote_code)


def _from_actor(source: CriticSource) -> Critic:
    """A network of its own that starts as the actor's trunk, with a head of zeros."""
    # Loaded a second time, because the critic's weights move apart from the actor's.
    lm = load_causal_lm(source.model, source.load)
    head = nn.Linear(source.hidden_size, 1)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return CriticNetwork(lm.model.base_model, head)


def _on_lower_layers(source: CriticSource) -> Critic:
    """The last blocks of the reward model, where it is of the actor's shape, else of the actor, on the actor's lower layers."""
    if source.trunk is None:
        raise ValueError(
            "critic='top_layers' reads the actor's lower layers, which are not at hand here; choose another."
        )
    whole = _from_actor(source)
    if source.reward_model is not None:
        config = load_config(source.reward_model, "reward model", "critic", source.trust_remote_code)
        if same_shape(config, source.trunk.config):
            whole = _from_reward_model(source)
    assert isinstance(whole, CriticNetwork)
    whole.trunk = with_own_top(source.trunk, whole.trunk, source.layers)
    return whole


def same_shape(one: Any, other: Any) -> bool:
    """Whether two configurations are of models with the same layers, as many of them."""
    heads = ("num_attention_heads", "num_key_value_heads")
    names = ("model_type", "hidden_size", "num_hidden_layers", *heads, "intermediate_size", "vocab_size")
    return all(getattr(one, name, None) == getattr(other, name, None) for name in names)


def _from_reward_model(source: CriticSource) -> CriticNetwork:
    """A network of its own that starts as the reward model."""
    if source.reward_model is None:
        raise ValueError(
            "critic='reward_model' needs a reward model to start from; give its name, or choose another critic."
        )
    # Loaded for this critic alone: the shared reward model stays frozen.
    network = load_weights(
        AutoModelForSequenceClassification, source.reward_model, "reward model", "critic", source.load
    )
    attach_mlp_head(network, source.reward_model, "critic")
    head = scalar_head(network)
    if head is None:
        raise ValueError(
            f"critic='reward_model': {source.reward_model!r} is no decoder with a scalar head at its last token; "
            "choose critic='actor', 'head' or 'detached_head'."
        )
    # The critic predicts scores as they are paid: normalized as the reward model does it, shifted and scaled as the task does.
    mean, std = float(getattr(network.config, "score_mean", 0.0)), float(getattr(network.config, "score_std", 1.0))
    # ((raw - mean) / std + shift) · scale, as one mean and one deviation
    return CriticNetwork(network.base_model, head, mean - source.reward_shift * std, std / source.reward_scale)


NETWORKS: dict[str, Callable[[CriticSource], Critic]] = {
    "reward_model": _from_reward_model,
    "actor": _from_actor,
    "top_layers": _on_lower_layers,
}
"""Critics that have layers of their own."""
CRITICS: dict[str, Callable[[CriticSource], Critic]] = {
    **NETWORKS,
    "head": lambda source: HeadCritic(source.hidden_size),
    "detached_head": lambda source: HeadCritic(source.hidden_size, detach=True),
    "none": lambda source: NoCritic(),
}


def make_critic(kind: str, source: CriticSource) -> Critic:
    """A trainable critic by its name in `CRITICS`, in float32.

    Raises:
        ValueError: the kind is not known, there is no reward model to start from, or it is no decoder with a scalar head.
        FileNotFoundError: a model cannot be found.
    """
    check_critic(kind)
    return CRITICS[kind](source)


def check_critic(kind: str) -> None:
    """Refuses what is not in `CRITICS`.

    Raises:
        ValueError: the critics that there are are named.
    """
    if kind not in CRITICS:
        raise ValueError(f"critic={kind!r} is not known; use one of {', '.join(CRITICS)}.")


def enable_checkpointing(module: nn.Module) -> None:
    """Turns gradient checkpointing on for a transformers model."""
    settings = {"use_reentrant": False, "context_fn": recompute_contexts}
    if hasattr(module, "activation_checkpointing_enable"):  # transformers 5.20 renamed it
        module.activation_checkpointing_enable(settings)  # type: ignore[operator]
    else:
        module.gradient_checkpointing_enable(settings)  # type: ignore[operator]
