from __future__ import annotations

import numpy as np
import pytest

from agents.advantages import gae, whiten


def slow_gae(rewards: list[float], values: list[float], last: float, gamma: float, lam: float) -> list[float]:
    """The double sum of eq. 16, term by term."""
    states = [*values, last]
    deltas = [rewards[t] + gamma * states[t + 1] - states[t] for t in range(len(rewards))]
    return [sum((gamma * lam) ** k * d for k, d in enumerate(deltas[t:])) for t in range(len(deltas))]


def test_gae_by_hand() -> None:
    # gamma 1, lambda 0.5, ended: deltas 0 + 2 - 1 = 1 and 3 + 0 - 2 = 1; A = 1 + 0.5, 1
    got = gae(np.array([[0.0, 3.0]]), np.array([[1.0, 2.0]]), np.array([2]), np.zeros(1), 1.0, 0.5)
    np.testing.assert_allclose(got, [[1.5, 1.0]])


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 1.0), (0.99, 0.0)])
def test_gae_against_a_slow_loop(gamma: float, lam: float) -> None:
    rng = np.random.default_rng(0)
    lengths = np.array([5, 1, 8, 3])
    rewards, values = rng.normal(size=(4, 8)), rng.normal(size=(4, 8))
    last = np.array([0.0, 2.0, 0.0, -1.0])
    got = gae(rewards, values, lengths, last, gamma, lam)
    for i, n in enumerate(lengths):
        want = slow_gae(rewards[i, :n].tolist(), values[i, :n].tolist(), float(last[i]), gamma, lam)
        np.testing.assert_allclose(got[i, :n], want)
        assert (got[i, n:] == 0).all()


def test_whiten() -> None:
    got = whiten(np.array([1.0, 2.0, 6.0]))
    assert got.mean() == pytest.approx(0)
    assert got.std() == pytest.approx(1)
    assert whiten(np.array([3.0])).tolist() == [0.0]
