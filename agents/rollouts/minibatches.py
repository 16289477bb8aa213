"""Mini-batches of whole segments: how they are dealt out, and what each holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from agents.distributed import ranks
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

    With several processes each deals out its own segments, to groups that are one mini-batch together: `batch_size` is in
    tokens of all of them, and all have as many groups, some of which may be empty here.

    Args:
        lengths: Tokens of each segment.
        order: Indices in the order in which they are dealt out, each to the group that is shortest so far.
        batch_size: In tokens; None: one group.

    Raises:
        ValueError: a segment alone, or one of each process, is longer than `batch_size`.
    """
    if batch_size is None:
        return [[int(i) for i in order]]
    tokens, longest = (int(n) for n in ranks().add([lengths[order].sum(), lengths[order].max(initial=0)]))
    if longest > batch_size:
        each, times = (" in each process", " x processes") if ranks().several else ("", "")
        raise ValueError(
            f"batch_size={batch_size} tokens is less than a response{each} of {longest} tokens, and responses are "
            f"not torn apart. Raise batch_size to at least max_new_tokens{times}."
        )
    # ⌈tokens / batch_size⌉ groups are the fewest; whole segments may need more, which the loop finds out.
    n_groups = -(-tokens // batch_size)
    while True:
        groups: list[list[int]] = [[] for _ in range(n_groups)]
        sizes = np.zeros(n_groups, dtype=np.int64)
        for i in order:
            # Each segment goes to the group with the fewest tokens so far.
            shortest = int(sizes.argmin())
            groups[shortest].append(int(i))
            sizes[shortest] += lengths[i]
        joint = ranks().add(sizes)
        if joint.max() <= batch_size:
            return [g for g, size in zip(groups, joint, strict=True) if size]
        n_groups += 1


def with_shares(
    groups: Sequence[Sequence[int]], lengths: np.ndarray, mean_over: str
) -> Iterator[tuple[Sequence[int], float, float]]:
    """Goes through mini-batches, each with what is here of all that the processes have of it.

    Args:
        groups: Segments of each mini-batch; as many mini-batches in all processes.
        lengths: Tokens of each segment.
        mean_over: What the policy's loss is a mean over: ``tokens`` or ``sequences``.

    Yields:
        The segments; their share of the mini-batch's tokens; and their share of its tokens or sequences, as `mean_over` says.
        Of a mini-batch that has none here it is the shortest segment, whose shares are 0: all processes evaluate as often.
    """
    tokens = np.array([lengths[list(g)].sum() for g in groups], dtype=np.float64)
    counts = tokens if mean_over == "tokens" else np.array([len(g) for g in groups], dtype=np.float64)
    shares = zip((tokens / ranks().add(tokens)).tolist(), (counts / ranks().add(counts)).tolist(), strict=True)
    for members, (share, policy_share) in zip(groups, shares, strict=True):
        yield members or [int(lengths.argmin())], share, policy_share
