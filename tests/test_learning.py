"""Invariant 8: PPO raises the reward by a margin that a broken sign, mask or credit assignment would miss."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from agents import TextMetricsCallback, make_algorithm
from agents.callbacks.token_budget import TokenBudget
from llm_env.default_task.gold import gold_score

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


LEARNERS: dict[str, dict[str, Any]] = {
    "a2c": {"n_envs": 32},
    "trpo": {},
    "maskable_ppo": {"env_kwargs": {"top_p": 0.95}},
    "dqn": {"n_envs": 32, "gradient_steps": 16},
    "qr_dqn": {"n_envs": 32, "gradient_steps": 16},
    "grpo": {},
    "dr_grpo": {},
    "rloo": {},
    "remax": {"n_envs": 32},
    "reinforce_pp": {},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARNERS)
def test_each_algorithm_learns_the_default_task(name: str) -> None:
    settings = dict(LEARNERS[name])
    env_kwargs = {"kl_coef": 0.05, **settings.pop("env_kwargs", {})}
    model = make_algorithm(name, seed=0, env_kwargs=env_kwargs, **{"n_envs": 64, **settings})
    callback = TextMetricsCallback(gold=gold_score)
    rows: list[dict[str, float]] = []
    callback.after_iteration = lambda: rows.append(dict(callback.last))  # type: ignore[method-assign]
    model.learn(10**9, callback=[callback, TokenBudget(callback, 9_000)], log_interval=None)
    assert 8_000 < callback.tokens < 12_000
    for metric in ("rm_score", "gold_score"):
        assert rows[-1][f"rollout/{metric}"] > rows[0][f"rollout/{metric}"] + 0.6
    assert rows[-1]["rollout/kl"] < 10


@pytest.mark.slow
def test_an_lstm_from_scratch_learns_the_reference_then_ends_early() -> None:
    """It starts some 200 nats away, and finds the cheapest text there is: none. What a language model is for."""
    model = make_algorithm("recurrent_ppo", n_envs=16, seed=0)
    callback = TextMetricsCallback()
    rows: list[dict[str, float]] = []
    callback.after_iteration = lambda: rows.append(dict(callback.last))  # type: ignore[method-assign]
    model.learn(12_000, callback=callback, log_interval=None)
    reward = [row["rollout/rm_score"] - 0.05 * row["rollout/kl"] for row in rows]
    assert reward[0] < -8
    assert reward[-1] > -2


@pytest.mark.slow
def test_random_search_raises_the_greedy_responses_reward() -> None:
    model = make_algorithm("ars", n_envs=32, seed=0, env_kwargs={"kl_coef": 0.05})
    callback = TextMetricsCallback()
    rows: list[dict[str, float]] = []
    callback.after_iteration = lambda: rows.append(dict(callback.last))  # type: ignore[method-assign]
    model.learn(30_000, callback=callback, log_interval=None)
    assert 28_000 < callback.tokens < 36_000  # what sb3-contrib counts many times over
    reward = [row["rollout/rm_score"] - 0.05 * row["rollout/kl"] for row in rows]
    assert max(reward[-3:]) > reward[0] + 0.25


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
