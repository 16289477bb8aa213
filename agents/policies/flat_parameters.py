"""A model's trainable parameters as one vector, for algorithms that derive with respect to each parameter in turn.

TRPO asks autograd for one gradient a parameter, and one Hessian-vector product walks through all of them: on a language
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
    """The trainable parameters of `module`, concatenated.

    While it is in use, `vector` is where the weights are: `push` brings them into the module, `pull` takes them from it.

    Args:
        module: Whose parameters they are.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._names = [name for name, p in module.named_parameters() if p.requires_grad]
        self._parameters = [p for p in module.parameters() if p.requires_grad]
        self.vector = nn.Parameter(parameters_to_vector(self._parameters).detach().clone())
        self._ahead = False

    def pull(self) -> None:
        """Takes the module's weights over; from now on `vector` counts."""
        self.vector.data = parameters_to_vector(self._parameters).detach().clone()
        self._ahead = True

    @torch.no_grad()
    def push(self) -> None:
        """Writes the vector into the module, if it may have changed since `pull`."""
        if self._ahead:
            vector_to_parameters(self.vector.data.clone(), self._parameters)

    def release(self) -> None:
        """Pushes; from now on the module counts."""
        self.push()
        self._ahead = False

    def forget(self) -> None:
        """From now on the module counts, as it is."""
        self._ahead = False

    def call(self, function: Callable[[], Tensor]) -> Tensor:
        """`function()`, with the module's weights being views of the vector, so that gradients arrive there."""
        if not self._ahead:
            self.pull()
        views = self.vector.split([p.numel() for p in self._parameters])
        weights = {
            f"module.{name}": view.view_as(p)
            for name, view, p in zip(self._names, views, self._parameters, strict=True)
        }
        return functional_call(_Caller(self.module, function), weights, ())


class _Caller(nn.Module):
    def __init__(self, module: nn.Module, function: Callable[[], Any]) -> None:
        super().__init__()
        self.module = module
        self.function = function

    def forward(self) -> Any:
        return self.function()
