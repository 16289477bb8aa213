"""Memory: what a CPU process does with what was freed, and telling that there was not enough."""

from __future__ import annotations

import ctypes
import traceback

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
_LARGEST = 2**31 - 1


def reuse_freed_memory() -> bool:
    """Has this process keep large freed blocks for its next large allocations, instead of handing them back.

    glibc gives each block of more than 32 MB back to the system as soon as it is freed. Logits and gradients are such
    blocks, and every training step would have the system clear their pages again, one by one. Memory in use at the peak
    does not change; what is freed later stays with the process until it ends.

    Returns:
        Whether this C library can be told so (glibc can).
    """
    try:
        library = ctypes.CDLL(None)
        return bool(library.mallopt(_M_MMAP_THRESHOLD, _LARGEST) and library.mallopt(_M_TRIM_THRESHOLD, _LARGEST))
    except (AttributeError, OSError, TypeError):  # not glibc, or no C library to be asked
        return False


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory could not be had, on a GPU or from the CPU's allocator."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)


def free_after(error: BaseException, device: torch.device) -> None:
    """Lets go of what the frames behind an error still hold, and of what a GPU's allocator has cached."""
    traceback.clear_frames(error.__traceback__)
    if device.type == "cuda":
        torch.cuda.empty_cache()
