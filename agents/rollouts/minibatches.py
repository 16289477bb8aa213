"""Mini-batches of whole segments: how they are dealt out, and what each holds."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import Tensor

from llm_env.lm.packing import PackedBatch


class TokenSamples(NamedTuple):
    """A mini-batch of n tokens; stable-baselines3's `RolloutBufferSamples` with what a loss on text needs besides.

    Attributes:
        observations: The segments that the tokens are in, laid end to end; `evaluate_actions` reads them in one pass.
        actions: The tokens taken, shape (n,), long.
        old_values: V before each token under the weights that sampled, shape (n,).
        old_log_prob: log π of each token under the weights that sampled, in nats, shape (n,).
        advantages: Shape (n,).
        returns: What the values should have been, shape (n,).
        ref_log_prob: log π_ref of each token, in nats, shape (n,); None where the loss has no KL penalty.
        action_masks: Which tokens might be chosen, as bits, shape (n, ⌈V/8⌉), uint8; None without masks.
    """

    observations: PackedBatch
    actions: Tensor
    old_values: Tensor
    old_log_prob: Tensor
    advantages: Tensor
    returns: Tensor
    ref_log_prob: Tensor | None = None
    action_masks: Tensor | None = None


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
    # ⌈tokens / batch_size⌉ groups are the fewest; whole segments may need more, which the loop finds out.
    n_groups = -(-int(lengths.sum()) // batch_size)
    while True:
        groups: list[list[int]] = [[] for _ in range(n_groups)]
        sizes = np.zeros(n_groups, dtype=np.int64)
        for i in order:
            # Each segment goes to the group with the fewest tokens so far.
            shortest = int(sizes.argmin())
            groups[shortest].append(int(i))
            sizes[shortest] += lengths[i]
        if sizes.max() <= batch_size:
            return [g for g in groups if g]
        n_groups += 1
