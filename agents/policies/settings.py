"""What `LLMActorCriticPolicy` is made from: names and numbers, so that a saved model pickles no weights with them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from agents.engines.engine import check_engine
from agents.policies.critic import check_critic
from agents.rules import OPTIMIZERS, check_arguments
from llm_env.default_task import DEFAULT_REWARD_MODEL
from llm_env.lm.names import check_base_quantization, check_choice, check_mixed_precision


@dataclass(frozen=True)
class PolicySettings:
    """Settings of an actor-critic policy on a language model, and their checks.

    Attributes:
        model: Folder or hub id of the actor. None: the embedded default.
        temperature: Divides the logits; must be the environment's, since the KL compares the two.
        critic: A row of `agents.policies.critic.CRITICS`: ``reward_model``, ``actor``, ``head``, ``detached_head``,
            ``top_layers`` or ``none``.
        critic_layers: Blocks that are a ``top_layers`` critic's own, on the actor's lower ones; None: 1.
        reward_model: Folder or hub id that a ``reward_model`` critic starts from. None: the embedded default, if `model` is
            it too.
        reward_shift: What the environment adds to a reward model's score; a critic that starts as one knows it from the start.
        reward_scale: What the environment multiplies the sum by; the same.
        lora_rank: Rank r of LoRA adapters on all linear layers (Hu et al. 2021, https://arxiv.org/abs/2106.09685);
            0 trains all weights.
        lora_alpha: LoRA's α; None: 2r.
        base_quantization: ``none``, or ``nf4``: the weights below the adapters are in 4 bits (QLoRA; Dettmers et al. 2023,
            https://arxiv.org/abs/2305.14314), the reference's too; see `llm_env.lm.quantization`.
        reference_load: With LoRA, `LoadSettings` of the environment's reference as a tuple: the adapters are put into
            that very model, which is then the reference when they are switched off. None: a model of the policy's own.
        mixed_precision: ``no``, or ``bf16``: weights in float32, arithmetic under autocast, decoding with a bf16 copy.
        offload: Put a critic network and its optimizer's states on the CPU while it is neither asked nor trained; frozen models
            are the environment's to put aside. No effect on a critic that shares the actor's layers, or on weights in shards.
        optimizer: ``adamw``, or ``adamw_8bit``, whose states are bytes (Dettmers et al. 2022, https://arxiv.org/abs/2110.02861);
            see `agents.policies.optimizers`.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, a third more time.
        micro_batch_tokens: Tokens of a mini-batch, prompts included, whose activations are in memory at a time; a larger
            mini-batch is worked through in parts, with the same gradient. None: all, unless that does not fit.
        use_cache: False reads the whole prefix for every token: slow, for comparison.
        planned: Write turns ahead while a bound buffer collects a rollout, instead of a token at each call; see
            `agents.policies.plan`.
        engine: What writes them: a name in `agents.engines.engine.ENGINES`, whose tokens are scored again by the policy. None:
            this project's own loop.
        entropy_grad: Whether `evaluate_actions` gives an entropy with gradients; False saves time where ``ent_coef`` is 0.
        critic_lr_scale: The critic's learning rate, as a multiple of the actor's.
        trust_remote_code: Whether model code from a hub may run.

    Raises:
        ValueError: a setting breaks its rule.
    """

    model: str | None = None
    temperature: float = 1.0
    critic: str = "reward_model"
    critic_layers: int | None = None
    reward_model: str | None = None
    reward_shift: float = 0.0
    reward_scale: float = 1.0
    lora_rank: int = 0
    lora_alpha: float | None = None
    base_quantization: str = "none"
    reference_load: tuple[Any, ...] | None = None
    mixed_precision: str = "no"
    offload: bool = False
    optimizer: str = "adamw"
    gradient_checkpointing: bool = False
    micro_batch_tokens: int | None = None
    use_cache: bool = True
    planned: bool = True
    engine: str | None = None
    entropy_grad: bool = True
    critic_lr_scale: float = 1.0
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        """Checks what can be checked before anything is loaded."""
        check_critic(self.critic)
        check_mixed_precision(self.mixed_precision)
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        check_arguments(vars(self), may_be_none=frozenset({"lora_alpha", "micro_batch_tokens", "critic_layers"}))
        check_base_quantization(self.base_quantization, self.lora_rank)
        if self.lora_alpha is not None and not self.lora_rank:
            raise ValueError(
                f"lora_alpha={self.lora_alpha} scales adapters, and lora_rank=0 has none: give lora_rank too."
            )
        check_engine(self.engine)
        if self.engine is not None and not self.planned:
            raise ValueError(
                f"engine={self.engine!r} writes turns ahead, and planned=False forbids it: leave one of them out."
            )
        if self.critic_layers is not None and self.critic != "top_layers":
            raise ValueError(
                f"critic_layers={self.critic_layers} is for critic='top_layers'; this one is {self.critic!r}."
            )
        if self.critic == "none" and self.critic_lr_scale != 1.0:
            raise ValueError(f"critic_lr_scale={self.critic_lr_scale}, but there is no critic.")

    @property
    def critic_start(self) -> str | None:
        """The reward model that a critic may start from: the one given, or the embedded default's with its actor."""
        return DEFAULT_REWARD_MODEL if self.reward_model is None and self.model is None else self.reward_model

    @classmethod
    def names(cls) -> list[str]:
        """The settings' names."""
        return [f.name for f in dataclasses.fields(cls)]

    @classmethod
    def take_from(cls, arguments: dict[str, Any]) -> PolicySettings:
        """These settings out of keyword arguments; what is not theirs stays in the dictionary."""
        # Popped, so that what is left goes to SB3's constructor, which refuses what it does not know.
        return cls(**{name: arguments.pop(name) for name in cls.names() if name in arguments})

    def to_dict(self) -> dict[str, Any]:
        """Keyword arguments that give the same settings again."""
        return {name: getattr(self, name) for name in self.names()}
