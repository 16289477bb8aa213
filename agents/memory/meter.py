"""Counts the memory that operations allocate and free again, and keeps the most that there was."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

KINDS = ("gradients", "logits", "activations")
"""What memory is for: gradients of weights; logits over the vocabulary; all else, which is mostly activations."""


class Meter(TorchDispatchMode):
    """While it is on, every storage that an operation makes is counted until it is freed.

    Storages that were there before count nothing, nor do those that are made outside of torch's operations.

    Args:
        vocab_size: V: a table whose last side is that is one of logits.
        weights: Shapes of weights: what has one of them in a backward pass is a gradient.

    Attributes:
        now: Bytes that are allocated now, of each kind in `KINDS`.
        most: The same at the moment when the sum was highest.
    """

    def __init__(self, vocab_size: int, weights: Iterable[Sequence[int]] = ()) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.weights = {tuple(shape) for shape in weights}
        self.now: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self._kinds: dict[int, str] = {}
        """The kind of each storage that is counted, by where it is."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operation, and counts what it gives."""
        kwargs = kwargs or {}
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        out = func(*args, **kwargs)
        for tensor in tree_leaves(out):
            # What was given comes back as a view of it, or changed in place.
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in given:
                self._count(tensor)
        return out

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        place = storage._cdata
        if place in self._kinds:
            return
        kind = self._kinds[place] = self._kind(tensor)
        self.now[kind] += storage.nbytes()
        weakref.finalize(storage, self._freed, place, storage.nbytes())
        if sum(self.now.values()) > sum(self.most.values()):
            self.most = Counter(self.now)

    def _kind(self, tensor: Tensor) -> str:
        if torch._C._current_graph_task_id() != -1 and tuple(tensor.shape) in self.weights:  # -1: no backward pass
            return "gradients"
        return "logits" if tensor.ndim and tensor.shape[-1] == self.vocab_size else "activations"

    def _freed(self, place: int, size: int) -> None:
        self.now[self._kinds.pop(place)] -= size
