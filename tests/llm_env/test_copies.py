"""Environments that are pickled or copied: small, and they go on as the original does; what cannot be copied says so."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv
from stable_baselines3.common.vec_env import SubprocVecEnv

from agents.rollouts.vec_env import LLMTextVecEnv
from llm_env.default_task import DEFAULT_MODEL
from llm_env.lm.causal_lm import load_causal_lm
from llm_env.lm.names import LoadSettings
from llm_env.lm.registry import MODELS
from tests.conftest import count_dots

SMALL: dict[str, Any] = {"max_new_tokens": 6, "max_prompt_length": 12}
COPIES: dict[str, Callable[[Any], Any]] = {
    "pickle": lambda env: pickle.loads(pickle.dumps(env)),
    "cloudpickle": lambda env: pickle.loads(cloudpickle.dumps(env)),
    "deepcopy": copy.deepcopy,
}
LARGEST = 100_000


def course(env: Any, steps: int = 20) -> list[Any]:
    """What an environment says to a fixed course of tokens, through ends and new episodes."""
    said: list[Any] = []
    rng = np.random.default_rng(3)
    for _ in range(steps):
        obs, reward, terminated, truncated, info = env.step(int(rng.integers(3, 200)))
        said += [obs["input_ids"].tolist(), reward, terminated, truncated, info.get("response"), info.get("rm_score")]
        if terminated:
            obs, info = env.reset()
            said += [obs["input_ids"].tolist(), info["prompt"]]
    return said


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("made_with", [{}, {"reward_model": count_dots, "top_k": 5}], ids=["names", "a function"])
def test_a_copy_is_small_and_goes_on_as_the_original(way: str, made_with: dict[str, Any]) -> None:
    MODELS.clear()  # a model that an earlier test's adapters were in is loaded again once they are gone
    env: Any = gym.make("LLMText-v0", **SMALL, **made_with)
    env.reset(seed=5)
    env.step(7)
    env.unwrapped.task.kl.coef = 0.4
    env.action_space.seed(1)
    assert len(pickle.dumps(env)) < LARGEST
    loaded = len(MODELS)
    twin = COPIES[way](env)
    assert len(MODELS) == loaded
    assert twin.unwrapped.task is not env.unwrapped.task
    assert twin.unwrapped.task.model is env.unwrapped.task.model  # found in this process, not copied
    assert np.array_equal(twin.unwrapped.action_masks(), env.unwrapped.action_masks())
    assert twin.action_space.sample() == env.action_space.sample()
    assert course(twin) == course(env)


def test_it_can_be_copied_before_its_first_reset() -> None:
    env = gym.make("LLMText-v0", **SMALL)
    twin = pickle.loads(pickle.dumps(env))
    assert np.array_equal(twin.reset(seed=1)[0]["input_ids"], env.reset(seed=1)[0]["input_ids"])
    assert course(twin) == course(env)


@pytest.mark.parametrize("scoring", ["step", "deferred"])
def test_the_faces_of_many_slots(scoring: str) -> None:
    theirs: Any = gym.make_vec("LLMText-v0", num_envs=3, **SMALL)
    theirs.reset(seed=2)
    ours: Any = LLMTextVecEnv(3, scoring=scoring, **SMALL)
    ours.seed(2)
    ours.reset()
    for env in (theirs, ours):
        assert len(pickle.dumps(env)) < LARGEST
        twin = pickle.loads(pickle.dumps(env))
        for actions in np.random.default_rng(0).integers(3, 200, (14, 3)):
            one, other = env.step(actions), twin.step(actions)
            assert np.array_equal(one[0]["input_ids"], other[0]["input_ids"])
            assert one[1].tolist() == other[1].tolist()
            assert one[2].tolist() == other[2].tolist()


def test_a_world_is_played_again() -> None:
    world = {"world": "tests.worlds:echo", "world_kwargs": {"turns": 3}, "max_turn_tokens": 2, "max_new_tokens": 8}
    env: Any = gym.make("LLMText-v0", max_prompt_length=16, **world)
    env.reset(seed=4)
    for token in (7, 8, 9):  # a turn and a half
        env.step(token)
    twin = pickle.loads(pickle.dumps(env))
    assert course(twin, 12) == course(env, 12)
    env.close()
    twin.close()


def test_what_has_no_name_cannot_be_copied() -> None:
    env: Any = gym.make("LLMText-v0", **SMALL)
    env.unwrapped.task.own_reference()
    with pytest.raises(TypeError, match="its reference was refreshed, so its weights are not those of a folder"):
        pickle.dumps(env)
    venv = LLMTextVecEnv(2, top_k=3, **SMALL)
    venv.reset()
    venv.take_masks_from(load_causal_lm(DEFAULT_MODEL, LoadSettings("float32", "cpu")))
    with pytest.raises(TypeError, match="its masks look at a copy of the actor"):
        copy.deepcopy(venv)


def test_other_prompts_than_there_were_are_an_error(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("One.\nTwo.\n", encoding="utf-8")
    env = gym.make("LLMText-v0", prompts=str(prompts), reward_model=count_dots, **SMALL)
    env.reset(seed=0)
    kept = pickle.dumps(env)
    prompts.write_text("One.\n", encoding="utf-8")
    with pytest.raises(ValueError, match="prompts: there were 2 when this environment was pickled, and are 1 now"):
        pickle.loads(kept)


@pytest.mark.slow
def test_workers_get_environments_that_exist_already() -> None:
    env: Any = gym.make("LLMText-v0", **SMALL)
    env.reset(seed=3)
    alone = copy.deepcopy(env)
    want = [alone.step(token)[1] for token in (7, 8)]
    context = "spawn" if "spawn" in multiprocessing.get_all_start_methods() else None
    many = AsyncVectorEnv([lambda: env], context=context)
    theirs = SubprocVecEnv([lambda: env], start_method=context)
    try:
        assert many.reset(seed=[3])[0]["input_ids"].tolist() == env.reset(seed=3)[0]["input_ids"][None].tolist()
        assert [many.step(np.array([token]))[1][0] for token in (7, 8)] == pytest.approx(want)
        theirs.seed(3)
        theirs.reset()
        assert [theirs.step(np.array([token]))[1][0] for token in (7, 8)] == pytest.approx(want)
    finally:
        many.close()
        theirs.close()
