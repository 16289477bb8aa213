"""What this project changes in torch, in transformers and in the process to be faster, and the switch for it.

Each change is one row of `SPEED_PATCHES`; none changes a result by more than rounding. The environment variable
``LLM_ENV_FAST`` selects: ``1`` or unset, all of them; ``0``, none; or a list, as ``LLM_ENV_FAST=linear,malloc``.
"""

from __future__ import annotations

import ctypes
import functools
import os

import torch
from torch import nn

from llm_env.lm.onednn import OneDnnLinear, has_onednn
from llm_env.lm.varlen_attention import kernel

VARIABLE = "LLM_ENV_FAST"
SPEED_PATCHES = {
    "linear": "On a CPU, large linear layers of loaded models compute their float32 products with oneDNN instead of MKL. "
    "Applied by `use_onednn`, when a model is loaded.",
    "malloc": "On a CPU with glibc, the process keeps freed memory for its next allocations. "
    "Applied by `reuse_freed_memory`, when an algorithm is made.",
    "attention": "Sequences of different lengths are read end to end, without padding; while they are read, transformers "
    "calls our attention function. Applied by `llm_env.lm.packed_attention`, in each forward pass.",
    "prefixes": "Of such sequences that begin alike, as the responses to one prompt, the common prefix is read once. "
    "Applied by `llm_env.lm.packed_attention`; needs ``attention``.",
    "varlen": "On a CUDA device, in half precision, attention of such sequences is one kernel of torch's, which pads nothing. "
    "Applied by `llm_env.lm.packed_attention`, through `llm_env.lm.varlen_attention`.",
}
"""Each patch's name in ``LLM_ENV_FAST``, and what it does."""

MIN_WEIGHTS = 2**16
"""Smallest weight matrix, in numbers, that goes to oneDNN: smaller products are over before the choice pays."""


@functools.cache
def _parse(value: str) -> frozenset[str]:
    """The patches that a value of ``LLM_ENV_FAST`` selects."""
    if value.strip() in ("", "1"):
        return frozenset(SPEED_PATCHES)
    if value.strip() == "0":
        return frozenset()
    names = [name.strip() for name in value.split(",")]
    for name in names:
        if name not in SPEED_PATCHES:
            raise ValueError(
                f"{VARIABLE}={value!r}: {name!r} is not known. Set it to 1 (all, the default), 0 (none), or some of "
                f"{', '.join(SPEED_PATCHES)}, with commas between them."
            )
    return frozenset(names)


def is_fast(patch: str) -> bool:
    """Whether the user wants a speed patch, by the environment variable ``LLM_ENV_FAST``.

    Args:
        patch: A name from `SPEED_PATCHES`.

    Raises:
        ValueError: the variable's value is none of those that the module's docstring lists.
    """
    if patch not in SPEED_PATCHES:
        raise KeyError(f"There is no speed patch {patch!r}; there are {', '.join(SPEED_PATCHES)}.")
    return patch in _parse(os.environ.get(VARIABLE, ""))


def active_patches() -> dict[str, bool]:
    """For each speed patch, whether it is selected and this machine has what it needs.

    Raises:
        ValueError: the value of ``LLM_ENV_FAST`` is bad.
    """
    has = {
        "linear": has_onednn(),
        "malloc": _mallopt() is not None,
        "attention": True,
        "prefixes": is_fast("attention"),
    }
    has["varlen"] = torch.cuda.is_available() and kernel() is not None
    return {name: is_fast(name) and has[name] for name in SPEED_PATCHES}


def use_onednn(model: nn.Module) -> None:
    """Turns a model's large linear layers into `OneDnnLinear`, in place; weights and their names stay.

    Does nothing where the patch ``linear`` is off, or this torch has no oneDNN.
    """
    if not is_fast("linear") or not has_onednn():
        return
    for module in model.modules():
        if type(module) is nn.Linear and module.weight.numel() >= MIN_WEIGHTS:
            module.__class__ = OneDnnLinear


CUBLAS_VARIABLE = "CUBLAS_WORKSPACE_CONFIG"
"""cuBLAS reads it once, when it starts on a device; see NVIDIA's "cuBLAS: results reproducibility"."""


def be_deterministic() -> None:
    """Has torch take operations that give the same bits each time, for the rest of the process, and refuse others.

    On a CPU all that is used here is deterministic anyway, for the same number of threads. On a GPU some kernels add in
    whatever order threads finish; deterministic ones are slower, and where there is none torch raises a `RuntimeError` that
    names it.

    Raises:
        ValueError: it is too late: the GPU is in use already, without what cuBLAS has to know before.
    """
    if os.environ.get(CUBLAS_VARIABLE) not in (":4096:8", ":16:8"):
        if torch.cuda.is_initialized():
            raise ValueError(
                f"deterministic: the GPU is in use already. Set {CUBLAS_VARIABLE}=:4096:8 in the environment of the process."
            )
        os.environ[CUBLAS_VARIABLE] = ":4096:8"
    torch.use_deterministic_algorithms(True)
    # Memory that was not written is not read here either; filling it would cost a pass over every new tensor.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
_LARGE = 2**18  # bytes
_LARGEST_THRESHOLD = 2**31 - 1  # bytes; mallopt takes an int


def reuse_freed_memory() -> bool:
    """Has this process keep large freed blocks for its next large allocations, instead of handing them back.

    glibc gives each block of more than 32 MB back to the system as soon as it is freed. Logits and gradients are such
    blocks, and every training step would have the system clear their pages again, one by one. Memory in use at the peak
    does not change; what is freed later stays with the process until it ends.

    Returns:
        Whether the thresholds were set: False where the patch ``malloc`` is off, or the C library is not glibc.
    """
    mallopt = _mallopt()
    if not is_fast("malloc") or mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST_THRESHOLD) and mallopt(_M_TRIM_THRESHOLD, _LARGEST_THRESHOLD))


def hand_back_freed_memory() -> bool:
    """Has this process hand each large block back to the system as soon as it is freed: the opposite of `reuse_freed_memory`.

    glibc's own threshold rises with the blocks that are freed, up to 32 MB.

    Returns:
        Whether the threshold was set: False where the C library is not glibc.
    """
    mallopt = _mallopt()
    return mallopt is not None and bool(mallopt(_M_MMAP_THRESHOLD, _LARGE) and mallopt(_M_TRIM_THRESHOLD, _LARGE))


def _mallopt() -> ctypes._NamedFuncPointer | None:
    """The function of glibc that sets malloc's thresholds; None where the C library has none."""
    try:
        return ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc, or no C library to be asked
        return None
