"""A linear layer whose float32 products on a CPU go through oneDNN.

torch's own float32 `linear` calls MKL, which on some processors takes one and a half times as long for the few rows of a
decoding step, and a tenth more for the many of a training step; see docs/performance.md. Everywhere else (GPU, autocast,
other types) these layers are `torch.nn.Linear`. `llm_env.lm.runtime` decides which layers become one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx


def has_onednn() -> bool:
    """Whether this torch has oneDNN's product."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The product x Wᵀ + b for x (n, in), W (out, in)."""
    try:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    except RuntimeError:
        # Short of memory, oneDNN says "could not create a primitive". torch's own product either fits, or says what is wrong.
        return nn.functional.linear(x, weight, bias)


class _Linear(torch.autograd.Function):
    """The product and its gradients; that of the weight stays with MKL, which is no slower there."""

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
        if needs_x:
            # A second derivative, as TRPO takes it, needs operations that can be differentiated again.
            grad_x = grad @ weight if torch.is_grad_enabled() else _product(grad, weight.t())
        if needs_weight:
            grad_weight = grad.t() @ x
        if needs_bias and ctx.has_bias:
            grad_bias = grad.sum(0)
        return grad_x, grad_weight, grad_bias


class OneDnnLinear(nn.Linear):
    """`torch.nn.Linear`, faster in float32 on a CPU."""

    def forward(self, input: Tensor) -> Tensor:
        """The same as `torch.nn.Linear.forward`, to within rounding: (..., in) to (..., out)."""
        weight = self.weight
        if (
            input.dtype != torch.float32
            or weight.dtype != torch.float32
            or input.device.type != "cpu"
            or not input.numel()
            or torch.is_autocast_enabled("cpu")
        ):
            return super().forward(input)
        rows = input.reshape(-1, input.shape[-1])  # (n, in)
        product: FunctionCtx | Tensor
        if torch.is_grad_enabled() and (rows.requires_grad or weight.requires_grad):
            product = _Linear.apply(rows, weight, self.bias)  # type: ignore[no-untyped-call]
        else:
            product = _product(rows, weight, self.bias)
        return product.view(*input.shape[:-1], -1)  # type: ignore[union-attr]
