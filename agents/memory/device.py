"""The device that a run will be on, and the memory that it has."""

from __future__ import annotations

import os

import torch

from llm_env.lm.loading import resolve_device


def kind(name: str, elsewhere: bool) -> str:
    """``cpu`` or ``cuda``.

    Args:
        name: The run's setting: ``auto``, or a torch device.
        elsewhere: Whether another machine's device is meant: ``auto`` is a GPU then.

    Raises:
        ValueError: it is no device of torch's, or not here.
    """
    if elsewhere:
        return "cpu" if torch.device("cuda" if name == "auto" else name).type == "cpu" else "cuda"
    return resolve_device(name).type


def memory(kind: str) -> tuple[int, str]:
    """Bytes of this machine's device, and whose they are, in words."""
    if kind == "cuda":
        free, total = torch.cuda.mem_get_info()
        return total, f"that {torch.cuda.get_device_name()} has ({free / 2**30:,.1f} GiB of them free now)"
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return total, "that this machine has"
