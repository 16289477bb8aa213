"""Estimates with their uncertainty: means with standard errors, win rates with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Z95 = 1.959964  # the normal distribution has 95 % within so many standard deviations of its mean


@dataclass(frozen=True)
class Estimate:
    """An estimated mean.

    Attributes:
        mean: Mean of the values, in their unit.
        half_width: Half the width of its 95 % interval.
        std: Standard deviation of one value.
    """

    mean: float
    half_width: float
    std: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """Estimates the mean of independent values, with the normal approximation for its interval."""
        array = np.asarray(values, dtype=np.float64)
        std = float(array.std(ddof=1)) if len(array) > 1 else 0.0
        return cls(float(array.mean()), Z95 * std / math.sqrt(len(array)), std)

    def __str__(self) -> str:
        return f"{self.mean:.2f} ± {self.half_width:.2f}"


def wilson_interval(wins: float, n: int) -> tuple[float, float]:
    """95 % interval of a proportion, Wilson 1927 (https://doi.org/10.1080/01621459.1927.10502953).

    Args:
        wins: Number of successes; a tie may count one half.
        n: Number of trials, at least 1.
    """
    p = wins / n
    center = p + Z95**2 / (2 * n)
    half = Z95 * math.sqrt(p * (1 - p) / n + Z95**2 / (4 * n**2))
    scale = 1 + Z95**2 / n
    return max(0.0, (center - half) / scale), min(1.0, (center + half) / scale)


def wins(scores: Sequence[float], others: Sequence[float]) -> float:
    """Counts the scores that are higher than the other score in the same place; equal ones count one half."""
    return sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in zip(scores, others, strict=True))
