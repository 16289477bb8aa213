from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.testing import assert_allclose

from llm_env.shaping import kl_k1, kl_k2, kl_k3, token_rewards


def test_token_rewards_by_hand() -> None:
    # two tokens, beta 0.5, score 3: r_1 = -0.5 (-1 + 2) = -0.5; r_2 = -0.5 (-0.2 + 0.6) + 3 = 2.8
    assert_allclose(token_rewards([-2.0, -0.6], 3.0, 0.5, [-1.0, -0.2]), [-0.5, 2.8])
    # the environment's part alone: -0.5 * 2 and -0.5 * 0.6 + 3
    assert_allclose(token_rewards([-2.0, -0.6], 3.0, 0.5), [-1.0, 2.7])


def test_token_rewards_of_an_unfinished_response_have_no_score() -> None:
    assert_allclose(token_rewards([-2.0, -0.6], None, 0.5, [-2.0, -0.6]), [0.0, 0.0])


@pytest.mark.parametrize("seed", range(3))
def test_kl_estimators_agree_with_the_exact_kl(seed: int) -> None:
    rng = np.random.default_rng(seed)
    p, q = rng.dirichlet(np.ones(6)), rng.dirichlet(np.ones(6))
    exact = float((p * np.log(p / q)).sum())
    # expectations under p, taken exactly
    for estimator, expected in ((kl_k1, exact), (kl_k3, exact)):
        assert math.isclose(float((p * estimator(np.log(p), np.log(q))).sum()), expected, rel_tol=1e-9)
    assert float((p * kl_k2(np.log(p), np.log(q))).sum()) == pytest.approx(float((p * np.log(p / q) ** 2).sum()) / 2)
    assert (kl_k3(np.log(p), np.log(q)) >= 0).all()
    assert (kl_k2(np.log(p), np.log(q)) >= 0).all()
