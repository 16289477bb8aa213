"""A critic network that is on the policy's device only while it is asked or trained, with its optimizer's states."""

from __future__ import annotations

import contextlib
from typing import Protocol

import torch
from torch import Tensor, nn

from agents.distributed import ranks
from agents.policies.critic import Critic, CriticNetwork
from agents.policies.top_layers import WithoutGradients
from llm_env.lm.placement import CPU, at_hand, is_on, move


def can_idle(critic: Critic) -> bool:
    """Whether a critic has all its layers to itself, whole in this process: then nobody needs them while it is not asked."""
    shares = any(isinstance(module, WithoutGradients) for module in critic.modules())
    return isinstance(critic, CriticNetwork) and not shares and not ranks().shards


class HasCritic(Protocol):
    """A policy."""

    critic: Critic
    optimizer: torch.optim.Optimizer

    @property
    def device(self) -> torch.device:
        """Where its first parameters are, which are the actor's."""


class IdleCritic:
    """Where a policy's critic is.

    Args:
        policy: The policy; a critic of its that cannot idle (`can_idle`) stays where it is.
        offload: Whether it is put aside at all.

    Attributes:
        idles: Whether it is.
    """

    def __init__(self, policy: HasCritic, offload: bool) -> None:
        self.policy = policy
        self.idles = offload and can_idle(policy.critic)

    @property
    def device(self) -> torch.device:
        """Where it is asked and trained."""
        return self.policy.device

    def bring(self) -> None:
        """Puts critic and states on the policy's device, for an update."""
        self._put(self.device)

    def put_aside(self) -> None:
        """Puts critic and states on the CPU, until the next update."""
        self._put(CPU)

    def _put(self, device: torch.device) -> None:
        critic = self.policy.critic
        if self.idles and not is_on(critic, device):
            parameters = list(critic.parameters())
            move(critic, device)
            same = all(a is b for a, b in zip(parameters, critic.parameters(), strict=True))
            assert same, "the optimizer moves others now"
            move_states(self.policy.optimizer, critic, device)

    def asked(self) -> contextlib.AbstractContextManager[None]:
        """The critic on the policy's device for the duration of a `with` block, without its optimizer's states."""
        return at_hand(self.policy.critic, self.device) if self.idles else contextlib.nullcontext()


def move_states(optimizer: torch.optim.Optimizer, module: nn.Module, device: torch.device) -> None:
    """Moves what an optimizer keeps of a module's parameters, in place.

    A number of steps is on the CPU wherever the parameters are, unless the optimizer's step is fused or captured.
    """
    of_module = {id(p) for p in module.parameters()}
    for group in optimizer.param_groups:
        along = bool(group.get("fused") or group.get("capturable"))
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {}) if id(parameter) in of_module else {}
            for name, value in state.items():
                if isinstance(value, Tensor) and (value.ndim > 0 or along):
                    state[name] = value.to(device)
