from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.logger import KVWriter, Logger

from agents import LLMActorCriticPolicy, TextMetricsCallback, make_algorithm
from agents.callbacks.token_budget import TokenBudget
from tests.conftest import count_dots

SMALL: dict[str, Any] = {"max_new_tokens": 6, "max_prompt_length": 12}


class Rows(KVWriter):
    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, Any], step: int = 0) -> None:
        self.rows.append(dict(key_values))


@pytest.mark.parametrize("episodes", ["synchronous", "continuous"])
def test_each_iteration_has_one_row_with_all_that_belongs_to_it(episodes: str) -> None:
    model = make_algorithm(
        "ppo", n_envs=8, seed=0, episodes=episodes, env_kwargs=SMALL, learning_rate=lambda p: 1e-4 * p
    )
    rows = Rows()
    model.set_logger(Logger(None, [rows]))
    callback = TextMetricsCallback(gold=count_dots)
    model.learn(8 * 6 * 3, callback=callback, log_interval=None)
    assert len(rows.rows) == 3
    assert [r["train/learning_rate"] for r in rows.rows] == pytest.approx([1e-4 * 2 / 3, 1e-4 / 3, 0], abs=1e-12)
    assert [r["time/total_timesteps"] for r in rows.rows] == [48, 96, 144]
    names = {
        "rollout/ep_rew_mean", "rollout/rm_score", "rollout/kl", "rollout/kl_per_token", "rollout/eos_rate",
        "rollout/response_length", "rollout/gold_score", "train/kl_coef", "train/approx_kl", "time/tokens_per_second",
    }  # fmt: skip
    for row in rows.rows:
        assert names <= row.keys()
        assert np.isfinite([row[n] for n in names]).all()
    assert rows.rows[0]["rollout/kl"] == pytest.approx(0, abs=1e-4)
    assert rows.rows[1]["rollout/kl"] != 0


def test_numbers_are_those_of_the_episodes() -> None:
    model = make_algorithm("ppo", n_envs=8, seed=0, env_kwargs={**SMALL, "kl_coef": 0.3}, learning_rate=5e-3)
    callback = TextMetricsCallback()
    model.learn(8 * 6 * 2, callback=callback, log_interval=None)
    episodes, last = callback.episodes, callback.last
    assert len(episodes) == 8
    assert last["rollout/rm_score"] == pytest.approx(np.mean([e["rm_score"] for e in episodes]))
    assert last["rollout/kl_per_token"] == pytest.approx(
        sum(e["kl"] for e in episodes) / sum(e["response_length"] for e in episodes)
    )
    for e in episodes:  # R - β KL, and the buffer holds the same
        assert e["episode"]["r"] == pytest.approx(e["rm_score"] - 0.3 * e["kl"], abs=1e-4)
    assert model.rollout_buffer.rewards.sum() == pytest.approx(sum(e["episode"]["r"] for e in episodes), abs=1e-3)
    assert last["rollout/kl"] == pytest.approx(np.mean([e["log_prob"] - e["ref_log_prob"] for e in episodes]), abs=1e-4)


def test_what_is_reported_is_what_is_learned_from_when_log_probs_are_scored_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = LLMActorCriticPolicy.score_segments

    def shifted(self: Any, sequences: Any, starts: Any, masks: Any) -> Any:
        log_probs, values = real(self, sequences, starts, masks)
        return log_probs - 0.25, values

    monkeypatch.setattr(LLMActorCriticPolicy, "score_segments", shifted)
    model = make_algorithm("ppo", n_envs=8, seed=0, env_kwargs=SMALL, mixed_precision="bf16")
    callback = TextMetricsCallback()
    model.learn(8 * 6, callback=callback, log_interval=None)
    lengths = sum(e["response_length"] for e in callback.episodes)
    assert sum(e["kl"] for e in callback.episodes) == pytest.approx(-0.25 * lengths, abs=0.05 * lengths)
    assert model.rollout_buffer.log_probs.sum() == pytest.approx(
        sum(e["log_prob"] for e in callback.episodes), abs=1e-3
    )
    assert model.rollout_buffer.rewards.sum() == pytest.approx(
        sum(e["episode"]["r"] for e in callback.episodes), abs=1e-3
    )


@pytest.mark.parametrize("name", ["ppo", "dqn", "recurrent_ppo"])
def test_a_token_budget_ends_training_and_schedules_run_over_it(name: str) -> None:
    settings: dict[str, Any] = {"gradient_steps": 1} if name == "dqn" else {}
    rates: list[float] = []
    model: Any = make_algorithm(
        name, n_envs=4, seed=0, env_kwargs=SMALL, learning_rate=lambda left: rates.append(left) or 1e-4, **settings
    )
    metrics = TextMetricsCallback()
    model.learn(10**6, callback=[metrics, TokenBudget(metrics, 150)], log_interval=None)
    assert 150 <= metrics.tokens < 150 + 2 * 4 * 6
    # The first update has the schedule's start, and the last one learns; the first entry is the constructor's.
    assert rates[1] == 1.0
    assert 0.0 < rates[-1] < 0.35
    assert all(a >= b for a, b in pairwise(rates[1:]))
