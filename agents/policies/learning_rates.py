"""A learning rate of its own for the critic, under algorithms that set one rate for all parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def parameter_groups(policy: nn.Module, critic: nn.Module, critic_scale: float) -> list[Any]:
    """Trainable parameters of a policy; the critic's in a group of their own where their learning rate is another.

    Args:
        policy: Actor and critic.
        critic: The part whose learning rate is scaled.
        critic_scale: Multiple of the actor's rate; 1 makes one group.
    """
    everything = [p for p in policy.parameters() if p.requires_grad]
    if critic_scale == 1.0:
        return everything
    of_critic = [p for p in critic.parameters() if p.requires_grad]
    ids = {id(p) for p in of_critic}
    of_actor = [p for p in everything if id(p) not in ids]
    # `lr_scale` is an entry of our own; optimizers keep unknown ones in `param_groups`, and in their state.
    return [{"params": of_actor, "lr_scale": 1.0}, {"params": of_critic, "lr_scale": critic_scale}]


def scale_learning_rates(optimizer: torch.optim.Optimizer) -> None:
    """Has every step take each group's learning rate times its ``lr_scale``: SB3 sets one rate for all groups."""

    def scale(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            # SB3 sets ``lr`` of all groups before each update; it is scaled for the duration of the step only.
            group["unscaled_lr"] = group["lr"]
            group["lr"] = group["lr"] * group["lr_scale"]

    def restore(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            group["lr"] = group.pop("unscaled_lr")

    optimizer.register_step_pre_hook(scale)
    optimizer.register_step_post_hook(restore)
