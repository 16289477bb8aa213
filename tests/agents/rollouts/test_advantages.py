from __future__ import annotations

import math

import numpy as np
import pytest

from agents.rollouts.advantages import dr_grpo, gae, grpo, remax, returns_to_go, rloo, turn_gae, whiten


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


def test_turn_gae_by_hand() -> None:
    # Turns of 2, 1 and 1 tokens, not ended (V behind the end: 4). γ 1, λ 0.5; R = 1, 0, 3; V = 1, 2, 0.5.
    # δ = 1 + 2 - 1, 0 + 0.5 - 2, 3 + 4 - 0.5 = 2, -1.5, 6.5; A_2 = 6.5, A_1 = -1.5 + 3.25, A_0 = 2 + 0.875
    rewards = np.array([[0.25, 0.75, 0.0, 3.0, 0.0], [5.0, 0.0, 0.0, 0.0, 0.0]])
    values = np.array([[1.0, 9.0, 2.0, 0.5, 0.0], [3.0, 0.0, 0.0, 0.0, 0.0]])
    turns = np.array([[0, 0, 1, 2, 0], [0, 0, 0, 0, 0]])
    advantages, returns = turn_gae(rewards, values, turns, np.array([4, 1]), np.array([4.0, 0.0]), 1.0, 0.5)
    np.testing.assert_allclose(advantages, [[2.875, 2.875, 1.75, 6.5, 0.0], [2.0, 0.0, 0.0, 0.0, 0.0]])
    np.testing.assert_allclose(returns, [[3.875, 9.0, 3.75, 7.0, 0.0], [5.0, 0.0, 0.0, 0.0, 0.0]])


def test_turn_gae_with_turns_of_one_token_is_gae() -> None:
    rng = np.random.default_rng(0)
    rewards, values, lengths = rng.normal(size=(3, 6)), rng.normal(size=(3, 6)), np.array([6, 2, 4])
    inside = np.arange(6) < lengths[:, None]
    rewards, values = rewards * inside, values * inside
    turns = np.where(inside, np.arange(6), 0)
    advantages, returns = turn_gae(rewards, values, turns, lengths, np.ones(3), 1.0, 0.9)
    np.testing.assert_allclose(advantages, gae(rewards, values, lengths, np.ones(3), 1.0, 0.9))
    np.testing.assert_allclose(returns, advantages + values)


def test_whiten() -> None:
    got = whiten(np.array([1.0, 2.0, 6.0]), 3.0, np.sqrt(14 / 3))
    assert got.mean() == pytest.approx(0)
    assert got.std() == pytest.approx(1)
    assert whiten(np.array([3.0]), 3.0, 0.0).tolist() == [0.0]


GROUPS = np.array([7, 7, 3, 3, 7, 3])
SCORES = np.array([1.0, 2.0, 5.0, 5.0, 6.0, 5.0])


def test_group_advantages_by_hand() -> None:
    # group 7: scores 1, 2, 6: mean 3, variance (4 + 1 + 9) / 3; group 3: all 5
    std = math.sqrt(14 / 3)
    np.testing.assert_allclose(grpo(SCORES, GROUPS), [-2 / std, -1 / std, 0, 0, 3 / std, 0], atol=1e-12)
    np.testing.assert_allclose(dr_grpo(SCORES, GROUPS), [-2, -1, 0, 0, 3, 0])
    # leave one out: 1 - (2+6)/2, 2 - (1+6)/2, 6 - (1+2)/2
    np.testing.assert_allclose(rloo(SCORES, GROUPS), [-3, -1.5, 0, 0, 4.5, 0])


def test_group_advantages_against_a_slow_loop() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(5), 4)[rng.permutation(20)]
    scores = rng.normal(size=20)
    for i in range(20):
        others = [scores[j] for j in range(20) if groups[j] == groups[i] and j != i]
        members = [*others, scores[i]]
        assert rloo(scores, groups)[i] == pytest.approx(scores[i] - sum(others) / len(others))
        assert dr_grpo(scores, groups)[i] == pytest.approx(scores[i] - sum(members) / 4)
        spread = math.sqrt(sum((m - sum(members) / 4) ** 2 for m in members) / 4)
        assert grpo(scores, groups)[i] == pytest.approx((scores[i] - sum(members) / 4) / spread)


def test_returns_to_go_and_remax_by_hand() -> None:
    rewards = np.array([[1.0, 2.0, 4.0], [3.0, 5.0, 0.0]])
    lengths = np.array([3, 2])
    np.testing.assert_allclose(returns_to_go(rewards, lengths, 0.5), [[3, 4, 4], [5.5, 5, 0]])
    np.testing.assert_allclose(remax(rewards, lengths, np.array([1.0, 2.0]), 1.0), [[6, 5, 3], [6, 3, 0]])
