"""Strengths of players from pairwise games: the Bradley-Terry model, on Elo's scale.

Bradley and Terry 1952 (https://doi.org/10.2307/2334029): i beats j with probability 1 / (1 + exp(θ_j - θ_i)). Elo's scale
gives 400 points to odds of 10 to 1. Chatbot Arena ranks models in this way (Chiang et al. 2024,
https://arxiv.org/abs/2403.04132).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

ELO = 400 / math.log(10)
"""Points for each unit of θ."""
PRIOR = 0.5
"""Games that each player is taken to have drawn with an average one, so that who won or lost all has a finite strength."""
STEPS = 200
"""Most steps of Newton's method; a handful are needed."""

Game = tuple[int, int, float]
"""(i, j, result): players, and 1 where i won, 0 where j did, one half for a tie."""


def score_matrix(games: Sequence[Game], players: int) -> NDArray[np.float64]:
    """Points that player i (row) took from player j (column), ties counting one half each; shape (players, players)."""
    points = np.zeros((players, players))
    for i, j, result in games:
        points[i, j] += result
        points[j, i] += 1 - result
    return points


def bradley_terry(points: NDArray[np.float64], prior: float = PRIOR) -> NDArray[np.float64]:
    """Finds the most probable strengths θ, which sum to 0.

    Maximizes Σ_ij points_ij log σ(θ_i - θ_j) plus, for each player, `prior` drawn games with a player of strength 0, by
    Newton's method.

    Args:
        points: Points that i took from j, shape (players, players).
        prior: Drawn games that each player is given, above 0.
    """
    count = len(points)
    theta = np.zeros(count)
    games = points + points.T
    for _ in range(STEPS):
        expected = _sigmoid(theta[:, None] - theta[None, :])  # (i, j): the share that i should take from j
        against_average = _sigmoid(theta)
        gradient = (points - games * expected).sum(axis=1) + prior * (0.5 - against_average)
        weights = games * expected * (1 - expected)
        hessian = np.diag(weights.sum(axis=1) + prior * against_average * (1 - against_average)) - weights
        step = np.linalg.solve(hessian, gradient)
        theta = theta + np.clip(step, -2, 2)  # far from the maximum Newton's steps are too long
        if np.abs(step).max() < 1e-10:
            break
    return theta - theta.mean()


def elo(points: NDArray[np.float64], anchor: int, prior: float = PRIOR) -> NDArray[np.float64]:
    """Strengths in Elo points above the player `anchor`, shape (players,)."""
    theta = bradley_terry(points, prior)
    return ELO * (theta - theta[anchor])


def elo_intervals(
    by_prompt: Sequence[Sequence[Game]], players: int, anchor: int, seed: int = 0, draws: int = 400
) -> NDArray[np.float64]:
    """95 % intervals of `elo` by the bootstrap: prompts are drawn anew, all games on a prompt together.

    Games on one prompt share its responses, so that they are not independent; prompts are.

    Args:
        by_prompt: The games on each prompt.
        players: How many players there are.
        anchor: The player who stands at 0.
        seed: Seed of the draws.
        draws: How often the prompts are drawn.

    Returns:
        Lower and upper bound of each player, shape (players, 2).
    """
    matrices = np.array([score_matrix(games, players) for games in by_prompt])
    rng = np.random.default_rng(seed)
    samples = []
    for _ in range(draws):
        weights = np.bincount(rng.integers(len(matrices), size=len(matrices)), minlength=len(matrices))
        samples.append(elo(np.tensordot(weights, matrices, axes=1), anchor))
    low, high = np.quantile(np.array(samples), [0.025, 0.975], axis=0)
    return np.stack([low, high], axis=1)


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-x))
