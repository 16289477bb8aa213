from __future__ import annotations

from typing import Any

import gymnasium as gym
import pytest
from stable_baselines3 import PPO

import llm_env  # noqa: F401
from agents import LLMTextVecEnv, TokenRolloutBuffer, make_algorithm

SMALL: dict[str, Any] = {"max_new_tokens": 6, "max_prompt_length": 12}


def test_it_returns_the_librarys_own_class() -> None:
    model = make_algorithm("ppo", n_envs=4, env_kwargs=SMALL)
    assert type(model) is PPO
    assert type(model.rollout_buffer) is TokenRolloutBuffer
    assert (model.n_steps, model.gamma, model.batch_size) == (6, 1.0, 6)
    assert make_algorithm("ppo", n_envs=4, rounds=3, env_kwargs=SMALL).n_steps == 18


def test_an_environment_that_exists_is_taken() -> None:
    venv = LLMTextVecEnv(3, **SMALL)
    model = make_algorithm("ppo", env=venv, n_steps=10)
    assert model.env is venv
    model.learn(30)
    single = gym.make("LLMText-v0", kl_coef=0.7, **SMALL)
    assert make_algorithm("ppo", env=single, n_envs=4).env.task.kl.coef == 0.7  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"name": "pppo"}, ValueError, "Did you mean 'ppo'"),
        ({"name": "ppo", "learning_rat": 1.0}, TypeError, "Did you mean 'learning_rate'"),
        ({"name": "ppo", "tau": 1.0}, TypeError, "ppo has no setting 'tau'"),
        ({"name": "ppo", "n_steps": 7}, ValueError, "n_steps=7 must be a multiple of max_new_tokens=6"),
        ({"name": "ppo", "batch_size": 5}, ValueError, "batch_size=5 tokens must be at least max_new_tokens=6"),
        ({"name": "ppo", "env": "CartPole-v1"}, ValueError, "env='CartPole-v1' is not known"),
        ({"name": "ppo", "critic": "oracle"}, ValueError, "critic='oracle' is not known"),
    ],
)
def test_unusable_settings(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make_algorithm(**{"n_envs": 4, "env_kwargs": SMALL, **arguments})


def test_a_reward_model_critic_needs_a_fitting_reward_model() -> None:
    other = {**SMALL, "reward_model": "tests.conftest:count_dots"}
    with pytest.raises(ValueError, match="critic='reward_model' needs one reward model"):
        make_algorithm("ppo", n_envs=4, env_kwargs=other, critic="reward_model")
    assert make_algorithm("ppo", n_envs=4, env_kwargs=other).policy_kwargs["critic"] != "reward_model"
    assert make_algorithm("ppo", n_envs=4, env_kwargs=SMALL).policy_kwargs["critic"] == "reward_model"


def test_other_environments_are_refused() -> None:
    with pytest.raises(TypeError, match="must be 'LLMText-v0'"):
        make_algorithm("ppo", env=gym.make("CartPole-v1"))
