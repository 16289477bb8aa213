"""The sequential test: values worked out by hand, and how often it errs, by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from agents.evaluation.sequential import first_decision, interval_at_any_time, log_e_value


def test_the_e_value_by_hand() -> None:
    # a = 1 is the uniform mixture: ∫ θ^3 (1 - θ) dθ = B(4, 2) = 3! 1! / 5! = 1/20, against (1/2)^4 = 1/16
    assert math.exp(log_e_value(3, 1, spread=1)) == pytest.approx(16 / 20)
    # against a share of 3/4: (3/4)^3 (1/4) = 27/256
    assert math.exp(log_e_value(3, 1, share=0.75, spread=1)) == pytest.approx(256 / (20 * 27))
    # a = 5: B(9, 6) / B(5, 5), with B(9, 6) = 8! 5! / 14! and B(5, 5) = 4! 4! / 9!
    b96, b55 = 1 / 18018, 1 / 630
    assert math.exp(log_e_value(4, 1)) == pytest.approx(b96 / b55 * 32)
    assert log_e_value(0, 0) == pytest.approx(0)
    assert log_e_value(1, 0, share=0.0) == math.inf


def test_it_is_a_martingale_under_the_null() -> None:
    """Whatever was seen, the next fair coin leaves it as large on the average; of an unfair one it grows."""
    for wins, losses, share in ((0, 0, 0.5), (7, 2, 0.5), (3, 9, 0.3)):
        win, loss = (math.exp(log_e_value(wins + w, losses + 1 - w, share)) for w in (1, 0))
        assert share * win + (1 - share) * loss == pytest.approx(math.exp(log_e_value(wins, losses, share)))


def test_with_ties_as_halves_it_does_not_grow() -> None:
    """Outcomes 1, 1/2, 0 with mean p: a supermartingale."""
    win, tie, loss = (math.exp(log_e_value(5 + x, 3 + 1 - x, 0.4)) for x in (1.0, 0.5, 0.0))
    now = math.exp(log_e_value(5, 3, 0.4))
    assert 0.2 * win + 0.4 * tie + 0.4 * loss < now
    assert 0.4 * win + 0.6 * loss == pytest.approx(now)


def test_decisions() -> None:
    assert first_decision([1.0] * 30) == ("a", 12)  # B(17, 5) / B(5, 5) 2^12 is the first above 20
    assert first_decision([0.0] * 30) == ("b", 12)
    assert first_decision([1.0] * 11) == (None, 11)
    assert first_decision([0.5] * 30) == (None, 30)  # ties say nothing about who is better,
    assert first_decision([0.5] * 400, equal_within=0.1)[0] == "equal"  # but that both are equally good
    assert first_decision([0.5, 1.0] * 12) == ("a", 24)  # the twelfth win
    assert first_decision([]) == (None, 0)


def test_the_interval_holds_what_the_e_value_leaves() -> None:
    low, high = interval_at_any_time(30, 10)
    for bound in (low, high):
        assert log_e_value(30, 10, bound) == pytest.approx(math.log(20), abs=1e-6)
    assert low < 0.75 < high
    assert low > 0.5  # the test is decided exactly where one half is outside
    assert interval_at_any_time(0, 0) == (0, 1)
    assert interval_at_any_time(0, 12)[0] == 0
    assert interval_at_any_time(3, 3, 0.05)[0] < interval_at_any_time(3, 3, 0.5)[0]


def simulated(win: float, loss: float, runs: int, length: int, seed: int) -> list[str | None]:
    """What the test says of actors of which A wins and loses with these probabilities, looked at after every comparison."""
    draws = np.random.default_rng(seed).choice([1.0, 0.0, 0.5], p=[win, loss, 1 - win - loss], size=(runs, length))
    return [first_decision(row.tolist())[0] for row in draws]


@pytest.mark.parametrize("ties", [0.0, 0.4])
def test_its_error_rate_holds_however_often_one_looks(ties: float) -> None:
    runs = 500
    null = simulated((1 - ties) / 2, (1 - ties) / 2, runs, 300, seed=0)
    wrong = sum(d is not None for d in null)
    # Ville: at most 25 of 500 in expectation for ever; 3 standard deviations above
    assert wrong <= 25 + 3 * math.sqrt(runs * 0.05 * 0.95)
    assert wrong >= 3  # and it is a test: it errs at all
    better = simulated((1 - ties) * 0.7, (1 - ties) * 0.3, 200, 300, seed=1)
    assert better.count("a") >= 190
    assert not better.count("b")


def test_a_test_for_one_look_errs_when_one_looks_often() -> None:
    """What the sequential test is for: the usual 5 % test, looked at after each of 300 comparisons."""
    draws = np.random.default_rng(0).integers(0, 2, size=(500, 300)).cumsum(axis=1)
    n = np.arange(1, 301)
    z = np.abs(draws - n / 2) / np.sqrt(n / 4)
    assert (z[:, 10:] > 1.96).any(axis=1).mean() > 0.2


def test_its_interval_covers_at_all_times_with_ties() -> None:
    """The true win rate, ties counted one half, is outside at some time in at most 5 % of the runs."""
    win, loss, runs = 0.5, 0.2, 200
    draws = np.random.default_rng(2).choice([1.0, 0.0, 0.5], p=[win, loss, 0.3], size=(runs, 150))
    outside = 0
    for row in draws:
        points = row.cumsum()
        outside += any(log_e_value(p, n - p, 0.65) >= math.log(20) for n, p in enumerate(points.tolist(), 1))
    assert outside <= 10 + 3 * math.sqrt(runs * 0.05 * 0.95)
