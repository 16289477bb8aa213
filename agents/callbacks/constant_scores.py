"""All scores equal for several rollouts: a reward that never fires looks like training, and nothing is learned."""

from __future__ import annotations

from collections.abc import Sequence

ROLLOUTS = 3
"""Rollouts in a row with one and the same score after which it is said."""
SCORES = 16
"""Scores that these rollouts must have at least: a few may well be equal by chance."""


class ConstantScores:
    """Watches the scores of one rollout after another, and says it once if they do not differ.

    Attributes:
        score: The score that all rollouts of the current row have; None where there is no such row.
        rollouts: Rollouts in that row.
        count: Scores in that row.
        said: Whether it was said already.
    """

    def __init__(self) -> None:
        self.score: float | None = None
        self.rollouts = 0
        self.count = 0
        self.said = False

    def see(self, scores: Sequence[float]) -> str | None:
        """Looks at a rollout's scores.

        Args:
            scores: The reward model's score of each response that ended; none ended: the rollout is left aside.

        Returns:
            What there is to say, on one line, or None.
        """
        if not scores:
            return None
        if any(score != scores[0] for score in scores):
            self.score, self.rollouts, self.count = None, 0, 0
            return None
        if scores[0] != self.score:
            self.score, self.rollouts, self.count = scores[0], 0, 0
        self.rollouts += 1
        self.count += len(scores)
        if self.said or self.rollouts < ROLLOUTS or self.count < SCORES:
            return None
        self.said = True
        return (
            f"all {self.count} scores of the last {self.rollouts} rollouts are {self.score:g}: there is nothing to learn from. "
            "Look whether the reward ever gives another score: to what the model writes, and to what it should write."
        )

    def state(self) -> dict[str, float | int | bool | None]:
        """The attributes, for a checkpoint."""
        return dict(vars(self))

    def load(self, state: dict[str, float | int | bool | None]) -> None:
        """Goes on from what `state` returned."""
        vars(self).update(state)
