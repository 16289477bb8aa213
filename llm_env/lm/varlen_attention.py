"""Causal attention inside sequences that are laid end to end, in one kernel: torch's own variable-length FlashAttention.

`torch.nn.attention.varlen.varlen_attn` takes queries, keys and values as they are in a packed batch, and where each
sequence begins, so that nothing is padded whatever the lengths (Dao 2023, https://arxiv.org/abs/2307.08691). It has CUDA
kernels for half precision only. Each shape of heads is tried once against scaled-dot-product attention, outputs and
gradients; where they disagree, or the kernel fails, it is left for that shape, with a line in the log. ``LLM_ENV_FAST``
turns it off (`llm_env.lm.packed_attention` asks).
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

logger = logging.getLogger(__name__)

HALF = (torch.bfloat16, torch.float16)
TRIED = (9, 5, 8)
"""Lengths of the sequences that a kernel is tried on."""

Kernel = Callable[..., Tensor]
_WORKS: dict[tuple[Any, ...], bool] = {}
"""Whether the kernel agreed, by device, dtype, heads of queries and of keys, and their size."""


@functools.cache
def kernel() -> Kernel | None:
    """Torch's kernel; None where this torch has none, or one without a window, by which newer ones are told to be causal."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    parameters = inspect.signature(varlen_attn).parameters
    attend: Any = varlen_attn  # which can return more, where it is asked to
    return attend if {"window_size", "scale"} <= set(parameters) else None


@functools.cache
def _shares_keys(attend: Kernel) -> bool:
    """Whether a kernel takes keys of fewer heads than queries; an older one needs them repeated."""
    return "enable_gqa" in inspect.signature(attend).parameters


def computed_in(query: Tensor) -> torch.dtype:
    """The type that attention computes in: under autocast its type, though queries may be float32, as rotary positions are."""
    device = query.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else query.dtype


def has_kernel_for(query: Tensor) -> bool:
    """Whether the kernel takes such queries: half precision on a CUDA device."""
    return query.is_cuda and computed_in(query) in HALF and kernel() is not None


def usable(query: Tensor, key: Tensor) -> bool:
    """Whether queries and keys go to the kernel, tried once for their shape.

    Args:
        query: As attention has it, shape (1, heads, N, D).
        key: Shape (1, fewer heads or as many, N, D).
    """
    if not has_kernel_for(query):
        return False
    shape = (query.device, computed_in(query), query.shape[1], key.shape[1], query.shape[3])
    if shape not in _WORKS:
        reason = _disagreement(*shape)
        _WORKS[shape] = not reason
        if reason:
            logger.warning(
                "Packed sequences are read by scaled-dot-product attention, which pads them, as torch's kernel for them %s.",
                reason,
            )
    return _WORKS[shape]


def bounds(lengths: Sequence[int], device: torch.device) -> Tensor:
    """Where sequences begin, and the last one ends, int32, shape (sequences + 1,)."""
    return torch.tensor([0, *lengths]).cumsum(0).to(device, torch.int32)


def varlen_attention(
    query: Tensor, key: Tensor, value: Tensor, ends: Tensor, longest: int, scale: float | None = None
) -> Tensor:
    """Causal attention inside each sequence, under autocast in its type.

    Args:
        query: Shape (N, heads, D).
        key: Shape (N, heads or a divisor of them, D).
        value: As many heads as keys have, shape (N, key heads, D).
        ends: From `bounds`.
        longest: Tokens of the longest sequence.
        scale: Of the scores; None: 1/√D.

    Returns:
        Shape (N, heads, D).
    """
    attend = kernel()
    assert attend is not None
    dtype = computed_in(query)
    query, key, value = (side.to(dtype) for side in (query, key, value))
    options: dict[str, Any] = {"window_size": (-1, 0), "scale": scale}
    if key.shape[1] != query.shape[1]:
        if _shares_keys(attend):
            options["enable_gqa"] = True
        else:
            times = query.shape[1] // key.shape[1]
            key, value = (side.repeat_interleave(times, 1) for side in (key, value))
    return attend(query, key, value, ends, ends, longest, longest, **options)


def _disagreement(device: torch.device, dtype: torch.dtype, heads: int, key_heads: int, size: int) -> str:
    """Why the kernel is not to be used for a shape: it differs from scaled-dot-product attention, or fails; else empty."""
    with torch.enable_grad(), torch.autocast(device.type, enabled=False):
        made = torch.Generator().manual_seed(0)
        sides = [torch.randn(sum(TRIED), n, size, generator=made) for n in (heads, key_heads, key_heads)]
        weights = torch.randn(sum(TRIED), heads, size, generator=made).to(device, dtype)
        q, k, v = (side.to(device, dtype).requires_grad_() for side in sides)
        parts = zip(*(side.split(TRIED) for side in (q, k, v)), strict=True)
        want = torch.cat([_one_sequence(*part) for part in parts])
        want_gradients = torch.autograd.grad((want * weights).sum(), (q, k, v))
        try:
            got = varlen_attention(q, k, v, bounds(TRIED, device), max(TRIED))
            gradients = torch.autograd.grad((got * weights).sum(), (q, k, v))
        except Exception as error:  # whatever a kernel lacks: a size of heads, a compute capability
            return f"failed ({type(error).__name__}: {str(error).partition(chr(10))[0]})"
    for one, other in zip((got, *gradients), (want, *want_gradients), strict=True):
        if (one.float() - other.float()).abs().max() > 5e-2 * other.float().abs().max():
            return "disagrees with it"
    return ""


def _one_sequence(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal attention of one sequence, (T, heads, D) each."""
    times = query.shape[1] // key.shape[1]
    key, value = (side.repeat_interleave(times, 1) for side in (key, value))
    q, k, v = (side.transpose(0, 1)[None] for side in (query, key, value))
    return functional.scaled_dot_product_attention(q, k, v, is_causal=True)[0].transpose(0, 1)
