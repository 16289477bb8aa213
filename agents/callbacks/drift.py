"""Where training leaves what it is for: the gold score falls while the score rises, responses repeat themselves, or run away.

A policy that is trained on a score finds what the score overlooks (Gao et al. 2023, "Scaling Laws for Reward Model
Overoptimization", https://arxiv.org/abs/2210.10760). The score itself cannot show it, so other numbers are looked at: a gold
score that nobody trains on, where there is one, and what can be counted in any text.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

WINDOW = 4
"""Iterations that are averaged before they are compared, so that one rollout's chance decides nothing."""
SURE = 3.5
"""Standard errors of a difference, beyond which it counts: the best of many windows is looked at, at each iteration."""
MOST_REPEATED = 0.1
"""An alarm where this share of a response more than at the beginning says again what it has said."""
LENGTHS = 3.0
"""An alarm where responses are longer than at the beginning by this factor, or shorter."""


@dataclass(frozen=True)
class Numbers:
    """An iteration's means over its responses, or those of several iterations.

    Attributes:
        score: What is trained on.
        gold: What nobody trains on; 0 where there is no such score.
        gold_variance: Variance of the mean `gold`: of one response's gold score, over the number of responses.
        repetition: Share of each response that repeats, 0 to 1; see `agents.diversity.repetition`.
        length: Tokens of a response, end token included.
    """

    score: float
    gold: float
    gold_variance: float
    repetition: float
    length: float


def mean_of(window: list[Numbers]) -> Numbers:
    """The means of iterations of about as many responses."""
    n = len(window)

    def mean(name: str) -> float:
        return math.fsum(getattr(numbers, name) for numbers in window) / n

    # Iterations are independent: the variance of their mean is the mean of their variances, over n.
    return Numbers(mean("score"), mean("gold"), mean("gold_variance") / n, mean("repetition"), mean("length"))


def gold_fell(best: Numbers, now: Numbers) -> bool:
    """Whether the gold score is surely below its best, while the score is above what it was then."""
    return best.gold - now.gold > SURE * math.sqrt(best.gold_variance + now.gold_variance) and now.score > best.score


def numbers_of(statistics: Mapping[str, float], responses: int) -> Numbers:
    """Takes an iteration's numbers out of the log's ``rollout/`` values of that many responses."""
    return Numbers(
        score=statistics["rollout/rm_score"],
        gold=statistics.get("rollout/gold_score", 0.0),
        gold_variance=statistics.get("rollout/gold_score_std", 0.0) ** 2 / responses,
        repetition=statistics["rollout/repetition"],
        length=statistics["rollout/response_length"],
    )


class Drift:
    """Compares each iteration, and those just before it, with the first ones and the best ones.

    The first `WINDOW` iterations are the beginning, when the policy has hardly left the reference. The best ones are those with
    the highest gold score, among windows that share no iteration with the latest one.
    """

    def __init__(self) -> None:
        self.recent: deque[Numbers] = deque(maxlen=2 * WINDOW)
        self.first: Numbers | None = None
        """Means of the first iterations."""
        self.best: Numbers | None = None
        """Means of the window with the highest gold score."""

    def see(self, numbers: Numbers) -> Iterator[tuple[str, str]]:
        """Takes an iteration's numbers, and yields a kind and a sentence for each alarm."""
        self.recent.append(numbers)
        windows = list(self.recent)
        now = mean_of(windows[-WINDOW:])
        if self.first is None:
            if len(windows) == WINDOW:
                self.first = now
            return
        if len(windows) == 2 * WINDOW:
            before = mean_of(windows[:WINDOW])
            if self.best is None or before.gold > self.best.gold:
                self.best = before
            if gold_fell(self.best, now):
                yield (
                    "gold",
                    f"the gold score has fallen from {self.best.gold:.3g} to {now.gold:.3g} (means of {WINDOW} iterations) "
                    f"while the score rose from {self.best.score:.4g} to {now.score:.4g}: the policy finds what the reward "
                    "overlooks. Raise kl_coef",
                )
        yield from self._of_texts(self.first, now)

    def _of_texts(self, first: Numbers, now: Numbers) -> Iterator[tuple[str, str]]:
        if now.repetition > first.repetition + MOST_REPEATED:
            yield (
                "repetition",
                f"{now.repetition:.0%} of a response repeats what it said before, where it was {first.repetition:.0%} at the "
                "beginning. Look at the samples; raise kl_coef",
            )
        if not first.length / LENGTHS < now.length < first.length * LENGTHS:
            yield (
                "length",
                f"responses have {now.length:.3g} tokens, where they had {first.length:.3g} at the beginning. Look at the "
                "samples; length_penalty, missing_eos_penalty and overlong_penalty pay for lengths",
            )

    def state_dict(self) -> dict[str, Any]:
        """Gives what a resumed run needs to raise the same alarms, in plain values."""
        return {
            "recent": [asdict(numbers) for numbers in self.recent],
            "first": self.first and asdict(self.first),
            "best": self.best and asdict(self.best),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` gave."""
        self.recent.clear()
        self.recent.extend(Numbers(**values) for values in state["recent"])
        self.first, self.best = (state[name] and Numbers(**state[name]) for name in ("first", "best"))
