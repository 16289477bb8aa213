"""Splits of records into those to train on and those to measure on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def split_indices(count: int, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Splits indices at random.

    Args:
        count: Number of records to split, at least 0.
        share: Share of them that is held out, 0 to 1.
        seed: Seed of the shuffle.

    Returns:
        Sorted indices to train on, and sorted indices to measure on, of which there is at least one.
    """
    n_held_out = max(1, round(share * count))
    order = np.random.default_rng(seed).permutation(count).tolist()
    return sorted(order[n_held_out:]), sorted(order[:n_held_out])


HELD_OUT_SHARE, HELD_OUT_MOST = 0.1, 256  # of the prompts, and in prompts


def hold_out(prompts: Sequence[T], seed: int) -> tuple[list[T], list[T]]:
    """Splits prompts at random: a tenth is held out, at least one and at most 256 of them.

    Args:
        prompts: What is to be split, at least two.
        seed: Seed of the shuffle.

    Returns:
        Prompts to train on, and prompts to measure on, both in their first order.
    """
    count = min(HELD_OUT_MOST, max(1, round(HELD_OUT_SHARE * len(prompts))))
    held = set(np.random.default_rng(seed).permutation(len(prompts))[:count].tolist())
    return [p for i, p in enumerate(prompts) if i not in held], [p for i, p in enumerate(prompts) if i in held]
