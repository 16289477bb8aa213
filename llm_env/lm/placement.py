"""Where a model is: on the CPU while nobody asks it, on its device for as long as it is asked.

A transfer is a call, and a `with` block says how long it lasts; nothing is hooked into modules. Copying changes no bit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

CPU = torch.device("cpu")


def device_of(module: nn.Module) -> torch.device:
    """The device of a module's weights; the CPU for one without any."""
    return next((p.device for p in module.parameters()), CPU)


def is_on(module: nn.Module, device: torch.device) -> bool:
    """Whether a module is on a device; ``cuda`` without a number is any of them."""
    place = device_of(module)
    return place.type == device.type and device.index in (None, place.index)


def move(module: nn.Module, device: torch.device) -> None:
    """Moves a module's parameters and buffers, in place: the parameters stay the same objects."""
    module.to(device)


@contextlib.contextmanager
def at_hand(module: nn.Module, device: torch.device) -> Iterator[None]:
    """A module on a device for the duration of a `with` block, and back where it was afterwards.

    Nothing is moved where it is there already: so blocks may be nested, and the outer one decides.
    """
    if is_on(module, device):
        yield
        return
    before = device_of(module)
    move(module, device)
    try:
        yield
    finally:
        move(module, before)
