"""Bradley-Terry strengths: cases worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from agents.evaluation.strengths import bradley_terry, elo, elo_intervals, score_matrix

SMALL = 1e-9


def test_points_with_ties() -> None:
    points = score_matrix([(0, 1, 1.0), (0, 1, 0.5), (1, 2, 0.0)], 3)
    assert points.tolist() == [[0, 1.5, 0], [0.5, 0, 0], [0, 1, 0]]


def test_two_players_by_hand() -> None:
    # 30 of 40: odds 3 to 1, θ_0 - θ_1 = log 3
    theta = bradley_terry(np.array([[0, 30.0], [10.0, 0]]), SMALL)
    assert theta.tolist() == pytest.approx([math.log(3) / 2, -math.log(3) / 2])
    assert elo(np.array([[0, 30.0], [10.0, 0]]), 1, SMALL).tolist() == pytest.approx([400 * math.log10(3), 0])
    # ten to one is 400 points
    assert elo(np.array([[0, 10.0], [1.0, 0]]), 1, SMALL)[0] == pytest.approx(400)


def test_three_players_by_hand() -> None:
    """Worths 1, 2, 4: shares i / (i + j) of 300 games each are fitted exactly."""
    worth = np.array([1.0, 2.0, 4.0])
    points = 300 * worth[:, None] / (worth[:, None] + worth[None, :])
    np.fill_diagonal(points, 0)
    expected = np.log(worth) - np.log(worth).mean()
    assert bradley_terry(points, SMALL).tolist() == pytest.approx(expected.tolist())


def test_players_who_never_met_are_compared_through_others() -> None:
    points = np.zeros((3, 3))
    points[0, 1], points[1, 0] = 20, 10  # odds 2
    points[1, 2], points[2, 1] = 30, 10  # odds 3
    theta = bradley_terry(points, SMALL)
    assert theta[0] - theta[2] == pytest.approx(math.log(6))


def test_the_prior_by_hand() -> None:
    """5 wins of 5 with half a drawn game each: θ_0 = -θ_1 = t, and the derivative 5 σ(-2t) + (1/2 - σ(t)) / 2 is 0."""
    theta = bradley_terry(np.array([[0, 5.0], [0, 0]]), 0.5)
    t = theta[0]
    assert theta[1] == pytest.approx(-t)
    assert 5 / (1 + math.exp(2 * t)) + 0.5 * (0.5 - 1 / (1 + math.exp(-t))) == pytest.approx(0, abs=1e-9)
    assert 1 < t < 2
    # even a hundred wins of a hundred, from a start far away, are found
    assert np.isfinite(bradley_terry(np.array([[0, 100.0, 100], [0, 0, 100], [0, 0, 0]]))).all()


def test_the_bootstrap_finds_the_interval_of_two_players() -> None:
    """θ_0 - θ_1 = logit of the share, whose standard error is 1 / sqrt(n p q)."""
    results = [1.0] * 120 + [0.0] * 80
    intervals = elo_intervals([[(0, 1, r)] for r in results], 2, 1, seed=0, draws=2000)
    half = 1.96 * 400 / math.log(10) / math.sqrt(200 * 0.6 * 0.4)
    center = 400 * math.log10(1.5)
    assert intervals[1].tolist() == [0, 0]
    assert intervals[0].tolist() == pytest.approx([center - half, center + half], abs=0.08 * half)


def test_games_on_one_prompt_are_drawn_together() -> None:
    """Each prompt's game told four times is no more to go by."""
    results = [1.0] * 60 + [0.0] * 40
    once = elo_intervals([[(0, 1, r)] for r in results], 2, 1, seed=0)
    four = elo_intervals([[(0, 1, r)] * 4 for r in results], 2, 1, seed=0)
    assert np.diff(four[0])[0] == pytest.approx(np.diff(once[0])[0], rel=0.05)
