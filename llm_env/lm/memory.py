"""Memory: what a CPU process does with what was freed, and telling that there was not enough."""

from __future__ import annotations

import traceback

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory could not be had, on a GPU or from the CPU's allocator."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)


def free_after(error: BaseException, device: torch.device) -> None:
    """Lets go of what the frames behind an error still hold, and of what a GPU's allocator has cached."""
    traceback.clear_frames(error.__traceback__)
    if device.type == "cuda":
        torch.cuda.empty_cache()
