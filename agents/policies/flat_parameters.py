"""A model's trainable parameters as one vector, for algorithms that take a gradient for each parameter in turn.

TRPO asks autograd for one gradient a parameter, and each Hessian-vector product walks through all of them: on a language
model that is a backward pass for each weight matrix. With one vector, of which the weights are views, it is one pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parameters_to_vector, vector_to_parameters


class FlatParameters:
    """The trainable parameters of a module, concatenated.

    There are two places for the weights, the module and `vector`. At the start the module's count; `pull` copies them into the
    vector, and from then on the vector's count, until `release`. `push` copies them back.

    Args:
        module: The module whose parameters are concatenated; frozen ones are left out.

    Attributes:
        vector: All n weights in one parameter, shape (n,), in the order of `module.named_parameters`.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._names = [name for name, p in module.named_parameters() if p.requires_grad]
        self._parameters = [p for p in module.parameters() if p.requires_grad]
        self.vector = nn.Parameter(parameters_to_vector(self._parameters).detach().clone())
        self._vector_counts = False

    def pull(self) -> None:
        """Copies the module's weights into the vector; from now on the vector's count."""
        self.vector.data = parameters_to_vector(self._parameters).detach().clone()
        self._vector_counts = True

    @torch.no_grad()
    def push(self) -> None:
        """Copies the vector into the module, while the vector's weights count."""
        if self._vector_counts:
            # A copy, because the module's parameters become views of what they are given, and the vector moves on.
            vector_to_parameters(self.vector.data.clone(), self._parameters)

    def release(self) -> None:
        """Copies the vector into the module; from now on the module's weights count."""
        self.push()
        self._vector_counts = False

    def forget(self) -> None:
        """Drops what the vector has; from now on the module's weights count, as they are."""
        self._vector_counts = False

    def call(self, function: Callable[[], Tensor]) -> Tensor:
        """Calls a function while the module's weights are views of the vector, so that gradients arrive there.

        Args:
            function: Takes nothing and computes a tensor with the module.

        Returns:
            What the function returned.
        """
        if not self._vector_counts:
            self.pull()
        # functional_call puts tensors in the place of a module's parameters, by their names below `_Caller.module`.
        views = self.vector.split([p.numel() for p in self._parameters])
        weights = {
            f"module.{name}": view.view_as(p)
            for name, view, p in zip(self._names, views, self._parameters, strict=True)
        }
        return functional_call(_Caller(self.module, function), weights, ())


class _Caller(nn.Module):
    """A module around another, whose forward pass is a function that uses the inner one: what `functional_call` can call."""

    def __init__(self, module: nn.Module, function: Callable[[], Any]) -> None:
        super().__init__()
        self.module = module
        self.function = function

    def forward(self) -> Any:
        return self.function()
