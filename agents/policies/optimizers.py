"""Optimizers by name: AdamW, and AdamW whose states have 8 bits (Dettmers et al. 2022, https://arxiv.org/abs/2110.02861).

A weight's two states are then two bytes instead of eight: each block of 256 values has a scale of its own, and a table of 256
numbers, dense near zero, in its place. Weights of fewer than 4,096 numbers keep states in float32. The arithmetic is
bitsandbytes'; here stand its name, and what makes its state plain tensors that a checkpoint can hold.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor

from agents.rules import OPTIMIZERS
from llm_env.extras import require
from llm_env.lm.names import check_choice


def optimizer_named(name: str, given: type[torch.optim.Optimizer] = torch.optim.AdamW) -> type[torch.optim.Optimizer]:
    """The class that a policy's setting `optimizer` stands for.

    Args:
        name: One of `agents.rules.OPTIMIZERS`.
        given: The policy's ``optimizer_class``, which counts where the name is the default.

    Raises:
        ValueError: the name is not known, or both say which it is.
        ImportError: the package that has it is not installed.
    """
    check_choice("optimizer", name, OPTIMIZERS)
    if name == "adamw":
        return given
    named = adamw_8bit()
    if given not in (torch.optim.AdamW, named):
        raise ValueError(
            f"optimizer={name!r} and optimizer_class={given.__name__} both say which it is: give one of them."
        )
    return named


def optimizer_defaults(optimizer_class: type[torch.optim.Optimizer]) -> dict[str, Any]:
    """Adam's eps 1e-5, as in "The N Implementation Details of RLHF with PPO", no weight decay, one fused step."""
    if issubclass(optimizer_class, torch.optim.Adam | torch.optim.AdamW):
        return {"eps": 1e-5, "weight_decay": 0.0, "fused": True}
    if getattr(optimizer_class, "has_8_bits", False):
        return {"eps": 1e-5, "weight_decay": 0.0}
    return {}


@functools.cache
def adamw_8bit() -> type[torch.optim.Optimizer]:
    """Bitsandbytes' 8-bit AdamW, with a plain state.

    Raises:
        ImportError: bitsandbytes is not installed; names the extra.
    """
    base: Any = require("bitsandbytes", "quantized").optim.AdamW8bit

    class AdamW8bit(base):  # type: ignore[misc]
        """bitsandbytes' optimizer; what it keeps of a weight is one flat dictionary of tensors and a number."""

        has_8_bits = True

        def fill_qmap(self) -> None:
            """Makes the tables of 256 numbers; without data (`agents.memory.weightless`) only their sizes."""
            if isinstance(torch.empty(0), FakeTensor):
                self.name2qmap = {name: torch.empty(256) for name in ("dynamic", "udynamic")}
            else:
                super().fill_qmap()

        def state_dict(self) -> dict[str, Any]:
            """As torch's: bitsandbytes' own puts the states into a dictionary in the dictionary, for FSDP to overlook."""
            return torch.optim.Optimizer.state_dict(self)

    return AdamW8bit
