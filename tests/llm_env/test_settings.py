"""The environment's settings: what is refused before anything is loaded, and reward functions as arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import llm_env  # noqa: F401
from agents.rollouts.vec_env import LLMTextVecEnv
from llm_env.env import LLMTextEnv
from llm_env.settings import TaskSettings, task_settings
from llm_env.vector_env import LLMTextVectorEnv
from tests.conftest import count_dots, count_words

SMALL: dict[str, Any] = {"max_new_tokens": 4, "max_prompt_length": 16, "kl_coef": 0.0}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("model", "", "model='' names nothing"),
        ("model", " ", "model=' ' names nothing"),
        ("reward_model", "", "reward_model='' names nothing"),
        ("reward_model", [], "reward_model=.* is an empty list"),
        ("reward_model", (), "reward_model=.* is an empty list"),
        ("reward_model", 3, "reward_model=3 must be a name, a function"),
        ("prompts", "", "prompts='' names nothing"),
    ],
)
def test_nothing_does_not_mean_the_embedded_default(name: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        task_settings({name: value})
    with pytest.raises(ValueError, match=message):
        gym.make("LLMText-v0", **{name: value})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("top_k", -1, "top_k=-1 must be a whole number of tokens, at least 0"),
        ("min_new_tokens", True, "min_new_tokens=True must be a whole number of tokens, at least 0"),
        ("min_new_tokens", 33, "min_new_tokens=33 must be at most max_new_tokens=32"),
        ("overlong_buffer", 33, "overlong_buffer=33 must be at most max_new_tokens=32"),
        ("top_p", 0.0, "top_p=0.0 must be a finite number above 0, at most 1"),
        ("forbidden_tokens", "the", "forbidden_tokens='the' must be a list of tokens, not one text"),
        ("overlong_penalty", -1, "overlong_penalty=-1 must be a finite number, at least 0"),
        ("kl_estimator", "k4", "kl_estimator='k4' is not known; use one of k1, k2, k3, exact"),
        ("reward_shift", float("inf"), "reward_shift=inf must be a finite number"),
        ("reward_scale", 0, "reward_scale=0 must be a finite number above 0"),
        ("reward_clip", -1.0, "reward_clip=-1.0 must be a finite number above 0"),
        ("mixed_precision", "fp16", "mixed_precision='fp16' is not known"),
    ],
)
def test_each_rule_names_the_value(name: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TaskSettings(**{name: value})


@pytest.mark.parametrize(
    "make",
    [
        LLMTextEnv,
        lambda **settings: gym.make("LLMText-v0", **settings),
        lambda **settings: gym.make(gym.spec("LLMText-v0"), **settings),
    ],
)
def test_a_function_is_a_reward_model(make: Callable[..., gym.Env[Any, Any]]) -> None:
    env = make(reward_model=count_words, **SMALL)
    env.reset(seed=0)
    words = env.unwrapped.task.tokenizer.encode(" The room", add_special_tokens=False)  # type: ignore[attr-defined]
    for token in words:
        assert env.step(token)[1] == 0.0
    assert env.step(2)[1] == 2.0


def test_gymnasium_makes_it_again_from_its_spec() -> None:
    env = gym.make("LLMText-v0", reward_model=[count_dots, [count_words, 0.5]], **SMALL)
    assert env.spec is not None
    assert env.spec.kwargs["reward_model"][0] is count_dots, "functions deep-copy as themselves"
    again = gym.make(env.spec)
    again.reset(seed=0)
    words = again.unwrapped.task.tokenizer.encode(" The room.", add_special_tokens=False)  # type: ignore[attr-defined]
    for token in words:
        again.step(token)
    assert again.step(2)[1] == 2.0


@pytest.mark.parametrize(
    "make",
    [
        LLMTextVectorEnv,
        lambda n, **settings: gym.make_vec("LLMText-v0", num_envs=n, **settings),
        lambda n, **settings: gym.make_vec("LLMText-v0", num_envs=n, vectorization_mode="sync", **settings),
    ],
)
def test_a_function_is_a_reward_model_of_several_environments(make: Callable[..., Any]) -> None:
    venv = make(2, reward_model=lambda prompts, responses: [7.0] * len(responses), **SMALL)
    venv.reset(seed=0)
    rewards = venv.step(np.array([2, 9]))[1]
    np.testing.assert_allclose(rewards, [7.0, 0.0], atol=1e-7)


def test_a_function_is_a_reward_model_behind_sb3() -> None:
    venv = LLMTextVecEnv(2, reward_model=[count_words, [lambda prompts, responses: [1.0] * len(prompts), 3.0]], **SMALL)
    venv.reset()
    np.testing.assert_allclose(venv.step(np.array([2, 9]))[1], [3.0, 0.0], atol=1e-7)
