"""Networks of tensors that have shapes, types and storages of a size, and no data: they cost nothing, whatever their size.

They are PyTorch's `FakeTensor`, which run every operation's rule for shapes in place of the operation. Reading values from them
raises, so that what goes through them must not depend on any.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from llm_env.lm.loading import without_weights
from llm_env.lm.registry import MODELS


@contextlib.contextmanager
def weightless() -> Iterator[None]:
    """A context in which models are made from their configurations, and all new tensors are on the CPU and without data.

    Models that the process has loaded are out of sight, and those that are made here are gone with the context.
    """
    to = nn.Module.to
    with FakeTensorMode(), without_weights("cpu"), MODELS.apart():
        # A module would put other tensors in place of its own, which torch refuses for these; all are where they should be.
        nn.Module.to = _stay  # type: ignore[method-assign,assignment]
        try:
            yield
        finally:
            nn.Module.to = to  # type: ignore[method-assign]


def _stay(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
    return module


def nbytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors' storages, each counted once: tied weights are one."""
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def trained(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """Those that get a gradient."""
    return [p for p in parameters if p.requires_grad]


def zeros(*shape: int, dtype: torch.dtype = torch.long) -> Tensor:
    """Token ids, or whatever else stands at the beginning of a pass."""
    return torch.zeros(*shape, dtype=dtype)
