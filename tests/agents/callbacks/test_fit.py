"""Callbacks that do not go with an algorithm say so before training begins."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from stable_baselines3.common.callbacks import BaseCallback

from agents import AdaptiveKL, LinearKL, MaskRefresh, ReferenceRefresh, TextMetricsCallback, make_algorithm
from tests.agents.small_runs import SMALL


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("dqn", lambda: AdaptiveKL(TextMetricsCallback(), 4.0), "kl_target: the backup of DQN is made for one beta"),
        ("dqn", lambda: LinearKL(0.05), "kl_coef_end: the backup of DQN is made for one beta"),
        ("ars", lambda: ReferenceRefresh(2), "ref_refresh_every: ARS's policy is no language model"),
        ("dqn", lambda: ReferenceRefresh(2), "ref_refresh_every: DQN's policy is no language model"),
        ("ppo", lambda: MaskRefresh(2), "mask_refresh: PPO knows no masks"),
    ],
)
def test_a_callback_that_does_not_fit_is_refused(name: str, make: Callable[[], BaseCallback], message: str) -> None:
    model = make_algorithm(name, n_envs=8, seed=0, env_kwargs=SMALL)
    with pytest.raises(ValueError, match=message):
        model.learn(8 * 6, callback=make())
    assert model.num_timesteps == 0


def test_beta_that_starts_at_zero_cannot_adapt() -> None:
    model = make_algorithm("ppo", n_envs=8, seed=0, env_kwargs={**SMALL, "kl_coef": 0.0})
    metrics = TextMetricsCallback()
    with pytest.raises(ValueError, match="kl_target needs a kl_coef above 0"):
        model.learn(8 * 6, callback=[metrics, AdaptiveKL(metrics, 4.0)])
