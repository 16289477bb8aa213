"""Critics: V(s) at every position of a text.

| name | network | gradients of the value loss |
|---|---|---|
| ``head`` | linear head on the actor's trunk | reach the trunk |
| ``detached_head`` | the same | stop at the head |
| ``reward_model`` | own network, starts as the reward model | its own |
| ``actor`` | own network, starts as the actor's trunk, with a head of zeros | its own |
| ``none`` | there is none, all values are 0: for advantages that need no critic | |

Heads that start at zero follow "The N Implementation Details of RLHF with PPO" (Huang et al. 2023); a critic that
starts from the reward model follows Stiennon et al. 2020 (https://arxiv.org/abs/2009.01325), appendix G.1.
"""

from __future__ import annotations

from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from llm_env.lm.causal_lm import CausalLM, load_causal_lm
from llm_env.lm.loading import load_weights
from llm_env.lm.names import LoadSettings
from llm_env.lm.packed_attention import packed_states, recompute_contexts
from llm_env.lm.packing import PackedBatch
from llm_env.reward.models import scalar_head

CRITICS = ("reward_model", "actor", "head", "detached_head", "none")


def zero_head(hidden_size: int) -> nn.Linear:
    """A linear head to one value, all zeros."""
    head = nn.Linear(hidden_size, 1)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


class CriticNetwork(nn.Module):
    """A critic of its own: a decoder trunk with a scalar head at every position.

    Args:
        trunk: Maps input ids (B, T) to hidden states (B, T, H), causally.
        head: Linear, H to 1.
        mean: Subtracted from the head's output …
        std: … before this divides it: the reward model's normalisation.
    """

    def __init__(self, trunk: nn.Module, head: nn.Module, mean: float = 0.0, std: float = 1.0) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = head
        self.mean = mean
        self.std = std

    def forward(self, batch: PackedBatch) -> Tensor:
        """V before each scored token, shape (n,), float32."""
        hidden = packed_states(self.trunk, batch)[batch.index]
        return (self.head(hidden)[:, 0].float() - self.mean) / self.std


def load_critic(kind: str, model: str, reward_model: str | None, trust_remote_code: bool) -> CriticNetwork:
    """A critic network of kind ``reward_model`` or ``actor``, trainable, in float32.

    Args:
        kind: See the module's docstring.
        model: The actor's name.
        reward_model: The reward model's name.
        trust_remote_code: Whether model code from a hub may run.

    Raises:
        ValueError: there is no reward model to start from, or it is no decoder with a scalar head.
    """
    settings = LoadSettings("float32", "cpu", trust_remote_code)
    if kind == "actor":
        lm: CausalLM = load_causal_lm(model, settings)
        hidden_size = lm.model.get_output_embeddings().weight.shape[1]
        return CriticNetwork(lm.model.base_model, zero_head(hidden_size))
    if reward_model is None:
        raise ValueError(
            "critic='reward_model' needs a reward model to start from; give its name, or choose another critic."
        )
    network = load_weights(AutoModelForSequenceClassification, reward_model, "reward model", "critic", settings)
    head = scalar_head(network)
    if head is None:
        raise ValueError(
            f"critic='reward_model': {reward_model!r} is no decoder with a scalar head at its last token; "
            "choose critic='actor', 'head' or 'detached_head'."
        )
    mean, std = getattr(network.config, "score_mean", 0.0), getattr(network.config, "score_std", 1.0)
    trunk = network.base_model
    del network
    return CriticNetwork(trunk, head, float(mean), float(std))


def enable_checkpointing(module: nn.Module) -> None:
    """Turns gradient checkpointing on for a transformers model."""
    settings = {"use_reentrant": False, "context_fn": recompute_contexts}
    if hasattr(module, "activation_checkpointing_enable"):  # transformers 5.20 renamed it
        module.activation_checkpointing_enable(settings)  # type: ignore[operator]
    else:
        module.gradient_checkpointing_enable(settings)  # type: ignore[operator]
