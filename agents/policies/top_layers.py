"""A trunk whose lower layers are another's, read without gradients, and whose upper ones are its own.

As in the value networks that share the actor's embedding and first layers, but detached: the value loss reaches the upper
layers alone, so the actor's trunk learns from its own loss only, and backward and optimizer work for k blocks instead of all.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn


class WithoutGradients(nn.Module):
    """Another model's module, run without gradients. Its parameters are none of this module's.

    Args:
        shared: The module, which goes on belonging to its model.
    """

    def __init__(self, shared: nn.Module) -> None:
        super().__init__()
        # Past nn.Module's registry: what is registered here would be saved, moved and optimized a second time.
        object.__setattr__(self, "shared", shared)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module gives, detached."""
        with torch.no_grad():
            return self.shared(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """What models ask their layers for, as an embedding's ``weight`` or a layer's ``attention_type``."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["shared"], name)


def layers_of(trunk: nn.Module) -> tuple[str, nn.ModuleList]:
    """The list of a decoder's blocks, with its name in the trunk.

    Raises:
        ValueError: there is none of ``config.num_hidden_layers`` blocks.
    """
    count = trunk.config.num_hidden_layers  # type: ignore[union-attr]
    for name, module in trunk.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return name, module
    raise ValueError(f"critic='top_layers': {type(trunk).__name__} has no list of its {count} layers.")


def with_own_top(trunk: nn.Module, own: nn.Module, count: int) -> nn.Module:
    """A trunk that reads as `trunk` does up to its last layers, and goes on with those of `own`.

    Args:
        trunk: A causal decoder without its head. Its embeddings and lower layers are shared and get no gradients.
        own: Another of the same shape, of which the last layers and what stands behind them (the last norm) are taken away and
            made the new trunk's own.
        count: How many layers are its own, from 1 to one less than there are.

    Raises:
        ValueError: `count` leaves none to share, or the layers are not found.
    """
    path, shared = layers_of(trunk)
    _, theirs = layers_of(own)
    if not 1 <= count < len(shared):
        raise ValueError(
            f"critic_layers={count}: the actor has {len(shared)} layers, of which 1 to {len(shared) - 1} can be the critic's "
            "own. critic='actor' is a network of its own."
        )
    top = list(theirs)[-count:]
    for block in top:
        for module in block.modules():
            if hasattr(module, "config"):  # one for all: packed attention is switched on and off there
                module.config = trunk.config
    *way, last = path.split(".")
    made: nn.Module = _copy(trunk)
    new = made
    old: nn.Module = trunk
    for name in way:  # as OPT's decoder
        old, own = old.get_submodule(name), own.get_submodule(name)
        new._modules[name] = _copy(old)
        new = new.get_submodule(name)
    behind = False
    for name, part in old._modules.items():
        if name == last:
            new._modules[name] = nn.ModuleList([*map(WithoutGradients, list(shared)[:-count]), *top])
            behind = True
        elif part is not None and any(True for _ in part.parameters()):
            is_own = behind or name.startswith("final")  # what OPT registers before its layers
            new._modules[name] = own.get_submodule(name) if is_own else WithoutGradients(part)
    return made


def _copy(module: nn.Module) -> Any:
    """The same module with a dictionary of children of its own."""
    copied = copy.copy(module)
    copied._modules = dict(module._modules)
    return copied
