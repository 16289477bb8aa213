"""Mini-batches of whole segments."""

from __future__ import annotations

import numpy as np


def balanced_groups(lengths: np.ndarray, order: np.ndarray, batch_size: int | None) -> list[list[int]]:
    """Splits segments into the fewest groups of at most `batch_size` tokens, of nearly equal size.

    A fixed cut-off would leave a rest, whose few tokens would weigh as much as a full mini-batch's.

    Args:
        lengths: Tokens of each segment.
        order: Indices in the order in which they are dealt out, each to the group that is shortest so far.
        batch_size: In tokens; None: one group.

    Raises:
        ValueError: a segment alone is longer than `batch_size`.
    """
    if batch_size is None:
        return [[int(i) for i in order]]
    if int(lengths.max()) > batch_size:
        raise ValueError(
            f"batch_size={batch_size} tokens is less than a response of {int(lengths.max())} tokens, and responses are "
            "not torn apart. Raise batch_size to at least max_new_tokens."
        )
    n_groups = -(-int(lengths.sum()) // batch_size)
    while True:
        groups: list[list[int]] = [[] for _ in range(n_groups)]
        sizes = np.zeros(n_groups, dtype=np.int64)
        for i in order:
            shortest = int(sizes.argmin())
            groups[shortest].append(int(i))
            sizes[shortest] += lengths[i]
        if sizes.max() <= batch_size:
            return [g for g in groups if g]
        n_groups += 1
