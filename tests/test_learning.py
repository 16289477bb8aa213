"""Invariant 8: PPO raises the reward by a margin that a broken sign, mask or credit assignment would miss."""

from __future__ import annotations

import numpy as np
import pytest

from agents import TextMetricsCallback, make_algorithm
from llm_env.gold import gold_score

WORD = " lovely"
CAP = 16


def count_word(prompts: list[str], responses: list[str]) -> list[float]:
    """How often the chosen token was written."""
    return [float(r.count(WORD)) for r in responses]


@pytest.mark.slow
@pytest.mark.parametrize("critic", ["reward_model", "detached_head"])
def test_ppo_learns_the_default_task(critic: str) -> None:
    model = make_algorithm("ppo", n_envs=64, seed=0, critic=critic, env_kwargs={"kl_coef": 0.1})
    callback = TextMetricsCallback(gold=gold_score)
    starts: list[dict[str, float]] = []
    callback.after_iteration = lambda: starts.append(dict(callback.last))  # type: ignore[method-assign]
    model.learn(64 * 32 * 16, callback=callback, log_interval=None)
    assert starts[-1]["rollout/rm_score"] > starts[0]["rollout/rm_score"] + 1.0
    assert starts[-1]["rollout/gold_score"] > starts[0]["rollout/gold_score"] + 1.5
    assert 0.5 < starts[-1]["rollout/kl"] < 10


@pytest.mark.slow
def test_one_chosen_token_is_driven_to_the_maximum() -> None:
    model = make_algorithm(
        "ppo", n_envs=32, seed=0, learning_rate=1e-3,
        env_kwargs={
            "kl_coef": 0.0, "max_new_tokens": CAP, "reward_model": "tests.test_learning:count_word",
            "prompts": ["Say it:"],
        },
    )  # fmt: skip
    callback = TextMetricsCallback()
    model.learn(32 * CAP * 60, callback=callback, log_interval=None)
    assert np.mean([e["rm_score"] for e in callback.episodes]) > 0.95 * CAP
