"""Losses that learn stars, 1 to 5, themselves, instead of the rankings that follow from them; and a report on held-out stars.

``ordinal`` is the cumulative link model with the logit link, also called proportional odds (McCullagh 1980, "Regression Models
for Ordinal Data", https://doi.org/10.1111/j.2517-6161.1980.tb01109.x): the score r is a place on a line that four thresholds
θ_1 < … < θ_4 cut into five parts, P(stars ≤ k) = σ(θ_k - r). The distance between 4 and 5 stars is learned, so that it may
differ from that between 1 and 2. ``regression`` takes stars for numbers: (m + r - stars)², with m the mean of the training
stars, so that the score of a head without a bias need not begin three stars away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, softplus

from agents.preferences.records import Ranking
from agents.preferences.stars import MOST
from agents.supervised.reward_model.report import rank_correlation

THRESHOLDS, MEAN = "star_thresholds", "star_mean"
"""Where ``config.json`` keeps the thresholds of an ordinal reward model, in units of its raw score, and m of a regression."""
_LEAST_SHARE = 0.01  # that a number of stars which nobody gave has in the first thresholds
_BINS = 5


class StarThresholds(nn.Module):
    """The thresholds θ_1 < … < θ_4 of the ordinal loss, which are trained with the model.

    They begin where a model that gives every response the score 0 fits best: at the logits of the cumulative shares.

    Args:
        stars: The stars of the training set.
    """

    def __init__(self, stars: Sequence[int]) -> None:
        super().__init__()
        counts = np.bincount(np.asarray(stars, int), minlength=MOST + 1)[1:].astype(float)
        shares = np.maximum(counts / max(1, len(stars)), _LEAST_SHARE)
        below = np.cumsum(shares / shares.sum())[:-1]  # P(stars ≤ k), k = 1 to 4
        logits = torch.tensor(np.log(below / (1 - below)), dtype=torch.float32)
        self.first = nn.Parameter(logits[:1].clone())
        # softplus of these is the distance to the threshold before, so that their order cannot change
        self.steps = nn.Parameter(torch.log(torch.expm1(logits.diff())))

    def forward(self) -> Tensor:
        """The thresholds, shape (4,), in units of the score."""
        return torch.cat([self.first, self.first + softplus(self.steps).cumsum(0)])


def ordinal_loss(scores: Tensor, stars: Tensor, thresholds: Tensor) -> Tensor:
    """Mean of -log P(stars) of the cumulative link model, eq. 2.3 of McCullagh 1980 with one slope.

    P(stars = k) = σ(θ_k - r) - σ(θ_{k-1} - r), with θ_0 = -∞ and θ_5 = ∞.

    Args:
        scores: r(x, y), shape (n,).
        stars: Whole numbers from 1 to 5, shape (n,).
        thresholds: θ_1 < … < θ_4, shape (4,).

    Returns:
        Scalar to minimize, in nats.
    """
    upper = thresholds[(stars - 1).clamp(max=MOST - 2)] - scores  # θ_k - r; not used where k = 5
    lower = thresholds[(stars - 2).clamp(min=0)] - scores  # θ_{k-1} - r; not used where k = 1
    # log(σ(a) - σ(b)) = log σ(a) + log σ(-b) + log(1 - exp(b - a)), which loses no digits where both are near 0 or 1
    between = logsigmoid(upper) + logsigmoid(-lower) + torch.log(-torch.expm1((lower - upper).clamp(max=-1e-6)))
    log_prob = torch.where(stars == 1, logsigmoid(upper), torch.where(stars == MOST, logsigmoid(-lower), between))
    return -log_prob.mean()


def regression_loss(scores: Tensor, stars: Tensor, mean: float) -> Tensor:
    """Mean of (m + r - stars)²: the score is what the stars are above or below their mean.

    Args:
        scores: r(x, y), shape (n,).
        stars: Whole numbers from 1 to 5, shape (n,).
        mean: m, the mean of the training stars.
    """
    return torch.square(mean + scores - stars).mean()


def expected_stars(scores: NDArray[np.float64], config: Mapping[str, Any]) -> NDArray[np.float64] | None:
    """The stars that a model expects: Σ_k k · P(stars = k) = 1 + Σ_k σ(r - θ_k), or m + r within 1 and 5.

    Args:
        scores: Raw scores, shape (n,).
        config: The model's ``config.json``.

    Returns:
        Shape (n,), from 1 to 5; None where the model has not learned stars.
    """
    if config.get(THRESHOLDS) is not None:
        distances = scores[:, None] - np.asarray(config[THRESHOLDS])[None]  # (n, 4)
        return 1 + (1 / (1 + np.exp(-np.clip(distances, -500, 500)))).sum(1)
    return None if config.get(MEAN) is None else np.clip(config[MEAN] + scores, 1.0, float(MOST))


def concordance(scores: NDArray[np.float64], stars: NDArray[np.float64]) -> float:
    """Of all pairs of responses with different stars, to whatever prompts, the share that the scores order as the stars do.

    Equal scores count one half. NaN where all have the same stars.
    """
    right = pairs = 0.0
    for level in np.unique(stars):
        here, above = np.sort(scores[stars == level]), scores[stars > level]
        # scores here that lie below each above, and those that are equal
        less, up_to = np.searchsorted(here, above, "left"), np.searchsorted(here, above, "right")
        right += float(less.sum() + 0.5 * (up_to - less).sum())
        pairs += len(here) * len(above)
    return right / pairs if pairs else float("nan")


def stars_report(
    scores: Sequence[float], stars: Sequence[int], predicted: Sequence[float] | None, usual: float
) -> dict[str, Any]:
    """How a model's scores go with held-out stars.

    Args:
        scores: Raw scores of n ≥ 1 responses.
        stars: Their stars.
        predicted: The stars that the model expects; None: it was trained on rankings and expects none.
        usual: Mean of the training stars, with which the error is compared.

    Returns:
        ``responses``; ``correlation`` (Spearman's) of score and stars; ``concordance``, the share of pairs of responses with
        different stars that are in the right order; and of what the model expects ``mean_error`` (absolute, in stars),
        ``mean_error_of_mean`` (of always the training mean), ``exact`` (share that is right when rounded), and
        ``star_calibration``: by bins of equal size, stars ``predicted`` and ``given`` on average, and their number.
    """
    r, given = np.asarray(scores, float), np.asarray(stars, float)
    report: dict[str, Any] = {
        "responses": len(given),
        "correlation": rank_correlation(r, given),
        "concordance": concordance(r, given),
    }
    if predicted is None:
        return report
    expected = np.asarray(predicted, float)
    order = np.argsort(expected, kind="stable")
    return report | {
        "mean_error": float(np.abs(expected - given).mean()),
        "mean_error_of_mean": float(np.abs(usual - given).mean()),
        "exact": float((np.floor(expected + 0.5) == given).mean()),
        "star_calibration": [
            {"predicted": float(expected[part].mean()), "given": float(given[part].mean()), "responses": len(part)}
            for part in np.array_split(order, min(_BINS, len(order)))
        ],
    }


def given_stars(rankings: Sequence[Ranking]) -> list[int]:
    """The stars of all responses that got some, in the rankings' order."""
    return [star for ranking in rankings for star in (ranking.stars or {}).values()]


def held_out_stars(
    rankings: Sequence[Ranking], scores: Sequence[Mapping[str, float]], config: Mapping[str, Any], usual: float
) -> dict[str, Any] | None:
    """`stars_report` on held-out rankings; None where none of their responses has stars.

    Args:
        rankings: Held-out rankings.
        scores: For each ranking the raw score of each response by its id.
        config: The model's ``config.json``.
        usual: Mean of the training stars; NaN where there were none.
    """
    stars = given_stars(rankings)
    if not stars:
        return None
    of_starred = [s[name] for r, s in zip(rankings, scores, strict=True) for name in r.stars or {}]
    expected = expected_stars(np.asarray(of_starred), config)
    return stars_report(of_starred, stars, None if expected is None else expected.tolist(), usual)
