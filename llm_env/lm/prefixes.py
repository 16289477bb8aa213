"""Prefixes that sequences have in common: the prompt of a group's responses or of a pair, a system prompt.

What a causal model makes of a token depends on the token and on what stands before it alone. So of sequences that begin alike,
the tokens of the common prefix give the same states, and one of them needs to be read. Gradients add up in it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

LEAST_SAVED = 0.1
"""Share of the tokens that need not be read, below which all are read: gathering them costs something too."""


class SharedPrefixes(NamedTuple):
    """Which tokens of sequences that are laid end to end need to be read, and whose states the others have.

    Attributes:
        first: Places of the U tokens that are read, among all N, rising, shape (U,). Each is the last token of a prefix that
            no sequence before it has.
        which: For each of the N tokens, which of the U has its state, shape (N,).
    """

    first: NDArray[np.int64]
    which: NDArray[np.int64]

    def part(self, start: int, stop: int) -> SharedPrefixes:
        """The same of whole sequences alone, which hold the tokens from `start` up to `stop`."""
        return _numbered(self.which[start:stop])


def shared_prefixes(sequences: Sequence[list[int]]) -> SharedPrefixes | None:
    """The prefixes that sequences have in common.

    Args:
        sequences: Token ids, in the order in which they are laid end to end.

    Returns:
        None where they have so little in common that all may as well be read.
    """
    lengths = [len(s) for s in sequences]
    ends = np.cumsum(lengths)
    # Each token stands for itself, at first.
    which = np.arange(ends[-1])
    # In the order of a dictionary a sequence has its longest common prefix with the one before it.
    order = sorted(range(len(sequences)), key=lambda i: sequences[i])
    for before, i in itertools.pairwise(order):
        length = _common(sequences[before], sequences[i])
        start, there = ends[i] - lengths[i], ends[before] - lengths[before]
        which[start : start + length] = which[there : there + length]
    shared = _numbered(which)
    return shared if len(shared.first) <= (1 - LEAST_SAVED) * len(which) else None


def _common(one: list[int], other: list[int]) -> int:
    """Length of the longest common prefix."""
    least, most = 0, min(len(one), len(other))
    while least < most:  # slices are compared at once, where a loop would go token by token
        middle = (least + most + 1) // 2
        if one[least:middle] == other[least:middle]:
            least = middle
        else:
            most = middle - 1
    return least


def _numbered(names: NDArray[np.int64]) -> SharedPrefixes:
    """The prefixes of tokens (N,), of which those have the same name that have the same state."""
    _, first, which = np.unique(names, return_index=True, return_inverse=True)
    # By where they stand first, not by their names.
    order = np.argsort(first)
    number = np.empty_like(order)
    number[order] = np.arange(len(order))
    return SharedPrefixes(first[order], number[which])
