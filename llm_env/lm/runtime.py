"""Linear layers whose float32 products on a CPU go through oneDNN.

torch's own float32 `linear` calls MKL, which on some processors takes one and a half times as long for the few rows of a
decoding step, and a tenth more for the many of a training step; see docs/performance.md. Everywhere else (GPU, autocast,
other types) these layers are `torch.nn.Linear`.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

MIN_WEIGHTS = 2**16  # smaller products are over before the choice pays


def has_onednn() -> bool:
    """Whether this torch has the operation."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The product x Wᵀ + b for x (n, in), W (out, in)."""
    try:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    except (
        RuntimeError
    ):  # short of memory it says "could not create a primitive"; torch's own product says what is wrong
        return nn.functional.linear(x, weight, bias)


class _Linear(torch.autograd.Function):
    """The product and its gradients; the weight's stays with MKL, which is no slower there."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        grad_x = grad_weight = grad_bias = None
        if needs_x:  # a second derivative, as TRPO takes it, needs operations that can be derived again
            grad_x = grad @ weight if torch.is_grad_enabled() else _product(grad, weight.t())
        if needs_weight:
            grad_weight = grad.t() @ x
        if needs_bias and ctx.has_bias:
            grad_bias = grad.sum(0)
        return grad_x, grad_weight, grad_bias


class OneDnnLinear(nn.Linear):
    """`torch.nn.Linear`, faster in float32 on a CPU."""

    def forward(self, input: Tensor) -> Tensor:
        """As `torch.nn.Linear.forward`, to within rounding."""
        weight = self.weight
        if (
            input.dtype != torch.float32
            or weight.dtype != torch.float32
            or input.device.type != "cpu"
            or not input.numel()
            or torch.is_autocast_enabled("cpu")
        ):
            return super().forward(input)
        rows = input.reshape(-1, input.shape[-1])
        product: FunctionCtx | Tensor
        if torch.is_grad_enabled() and (rows.requires_grad or weight.requires_grad):
            product = _Linear.apply(rows, weight, self.bias)  # type: ignore[no-untyped-call]
        else:
            product = _product(rows, weight, self.bias)
        return product.view(*input.shape[:-1], -1)  # type: ignore[union-attr]


def use_onednn(model: nn.Module) -> None:
    """Turns a model's large linear layers into `OneDnnLinear`, in place; weights and names stay."""
    if not has_onednn():
        return
    for module in model.modules():
        if type(module) is nn.Linear and module.weight.numel() >= MIN_WEIGHTS:
            module.__class__ = OneDnnLinear


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
