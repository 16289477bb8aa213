"""DAPO's dynamic sampling: groups whose responses all earned the same teach nothing, and are drawn again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

from agents.distributed import ranks
from agents.rollouts.segments import Segment

LEAST_SPREAD = 1e-8  # in score: below it, scores of a group count as equal


def groups_with_spread(segments: Sequence[Segment]) -> list[Segment]:
    """The segments of groups whose responses earned different scores (section 3.2 of Yu et al. 2025).

    Source: https://arxiv.org/abs/2503.14476.
    """
    scores: dict[int, list[float]] = {}
    for segment in segments:
        # The score alone, without the KL penalty, which differs between any two responses.
        score = segment.episode.final_score if segment.episode is not None else None
        scores.setdefault(segment.group, []).append(sum(segment.rewards) if score is None else score)
    with_spread = {group for group, values in scores.items() if max(values) - min(values) > LEAST_SPREAD}
    # Whole groups stay or go: a baseline needs all of a group's responses.
    return [s for s in segments if s.group in with_spread]


def first_groups(kept: Sequence[Segment], most: int) -> tuple[set[int], int]:
    """The first groups of those that were kept, at most `most`, all processes' counted.

    Args:
        kept: Segments in the order in which they were collected.
        most: How many groups, in all processes together.

    Returns:
        The numbers of this process's groups among them, and how many they are in all processes.
    """
    # A group's number rises with the time at which it was collected, and with its slots.
    mine = list(dict.fromkeys(s.group for s in kept))
    of_all = sorted((group, rank) for rank, groups in enumerate(ranks().everyone(mine)) for group in groups)[:most]
    return {group for group, rank in of_all if rank == ranks().rank}, len(of_all)


class PartOfRollout(BaseCallback):
    """Passes a callback the steps of a rollout that is collected in parts, its start once, and no part's end.

    Args:
        inner: The callback that the user gave to `learn`, for which all parts are one rollout.
        first: Whether this is the first part.
    """

    def __init__(self, inner: BaseCallback, first: bool) -> None:
        super().__init__()
        self.inner = inner
        self.first = first

    def on_rollout_start(self) -> None:
        """Tells the callback once."""
        if self.first:
            self.inner.on_rollout_start()

    def update_locals(self, locals_: dict[str, Any]) -> None:
        """Passes the loop's variables on."""
        self.inner.update_locals(locals_)

    def on_step(self) -> bool:
        """Passes the step on."""
        return self.inner.on_step()

    def _on_step(self) -> bool:
        return True

    def on_rollout_end(self) -> None:
        """Nothing yet: further parts may follow."""
