"""Running out of memory: how to recognize it, and how to free what a failed step still holds."""

from __future__ import annotations

import traceback

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or in the CPU's allocator."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)


def free_after(error: BaseException, device: torch.device) -> None:
    """Frees the memory that a failed step still holds.

    Args:
        error: The error, whose traceback keeps the local variables of the failed functions alive.
        device: Where the step ran; a GPU's allocator also gives its cached blocks back.
    """
    traceback.clear_frames(error.__traceback__)
    if device.type == "cuda":
        torch.cuda.empty_cache()
