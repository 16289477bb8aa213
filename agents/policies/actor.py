"""What all policies on a language model share: the model for an action space, and the optimizer's defaults."""

from __future__ import annotations

from typing import Any

import torch
from gymnasium import spaces
from peft import LoraConfig
from torch import nn
from transformers.pytorch_utils import Conv1D

from llm_env.default_task import DEFAULT_MODEL
from llm_env.lm.causal_lm import CausalLM, load_causal_lm
from llm_env.lm.names import LoadSettings


def load_actor_network(model: str | None, action_space: spaces.Space[Any], trust_remote_code: bool) -> CausalLM:
    """A causal LM of one's own, in float32, with a token for each action.

    Args:
        model: Folder or hub id. None: the embedded default.
        action_space: The environment's.
        trust_remote_code: Whether model code from a hub may run.

    Raises:
        FileNotFoundError, ValueError: it cannot be loaded, or has another number of tokens.
    """
    lm = load_causal_lm(model or DEFAULT_MODEL, LoadSettings("float32", "cpu", trust_remote_code))
    check_vocabulary(lm, action_space)
    return lm


def check_vocabulary(lm: CausalLM, action_space: spaces.Space[Any]) -> None:
    """Refuses a model that has another number of tokens than the environment has actions.

    Raises:
        ValueError: naming both.
    """
    if not isinstance(action_space, spaces.Discrete) or int(action_space.n) != lm.vocab_size:
        raise ValueError(
            f"The environment has {getattr(action_space, 'n', action_space)} actions, model={lm.name!r} has "
            f"{lm.vocab_size} tokens. Give the policy the environment's model: policy_kwargs={{'model': …}}."
        )


def optimizer_defaults(optimizer_class: type[torch.optim.Optimizer]) -> dict[str, Any]:
    """Adam's eps 1e-5, as in "The N Implementation Details of RLHF with PPO", no weight decay, one fused step."""
    if issubclass(optimizer_class, torch.optim.Adam | torch.optim.AdamW):
        return {"eps": 1e-5, "weight_decay": 0.0, "fused": True}
    return {}


def adapter_config(model: nn.Module, rank: int, alpha: float | None = None, task_type: str = "CAUSAL_LM") -> LoraConfig:
    """LoRA adapters on all linear layers.

    Args:
        model: Where they go.
        rank: r.
        alpha: α; None: 2r.
        task_type: PEFT's.
    """
    return LoraConfig(
        r=rank,
        lora_alpha=2 * rank if alpha is None else alpha,  # type: ignore[arg-type]  # any number will do
        lora_dropout=0.0,
        target_modules="all-linear",
        fan_in_fan_out=any(isinstance(m, Conv1D) for m in model.modules()),
        task_type=task_type,
    )
