"""Invariant 4: the three faces, and step and deferred scoring, give the same observations and rewards."""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env as gymnasium_check
from stable_baselines3.common.env_checker import check_env as sb3_check

import llm_env  # noqa: F401
from agents.policies.sampled_actions import ActionTensor
from agents.rollouts.vec_env import LLMTextVecEnv
from llm_env.env import LLMTextEnv
from llm_env.vector_env import LLMTextVectorEnv
from llm_env.wrappers import VectorPolicyKLReward

SETTINGS: dict[str, Any] = {"max_new_tokens": 6, "max_prompt_length": 16, "kl_coef": 0.2, "missing_eos_penalty": 1.0}
N, STEPS = 3, 20


def actions(seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    chosen = rng.integers(3, 1000, (STEPS, N))
    chosen[rng.random((STEPS, N)) < 0.2] = 2  # the end token
    return chosen


def single_faces() -> tuple[np.ndarray, list[dict[str, Any]]]:
    """N single environments that are asked the vector environment's prompts."""
    venv = LLMTextVectorEnv(N, **SETTINGS)
    venv.reset(seed=5)
    rewards, infos = np.zeros((STEPS, N)), []
    envs = [LLMTextEnv(**SETTINGS) for _ in range(N)]
    for slot, env in enumerate(envs):
        env.reset(options={"prompt": venv.batch.episodes[slot].prompt.text})  # type: ignore[union-attr]
    for t, row in enumerate(actions()):
        venv.step(row)
        for slot, env in enumerate(envs):
            _, rewards[t, slot], terminated, _, info = env.step(row[slot])
            if terminated:
                infos.append({"t": t, "slot": slot, **info})
                env.reset(options={"prompt": venv.batch.episodes[slot].prompt.text})  # type: ignore[union-attr]
    return rewards, infos


def test_vector_face_equals_single_face() -> None:
    want, want_infos = single_faces()
    venv = gym.make_vec("LLMText-v0", num_envs=N, **SETTINGS)
    venv.reset(seed=5)
    got_infos = []
    for t, row in enumerate(actions()):
        obs, rewards, terminated, truncated, infos = venv.step(row)
        np.testing.assert_allclose(rewards, want[t], atol=1e-5)
        assert not truncated.any()
        for slot in np.flatnonzero(terminated):
            final = {k: v[slot] for k, v in infos["final_info"].items() if not k.startswith("_")}
            got_infos.append({"t": t, "slot": int(slot), **final})
            last = infos["final_obs"][slot]
            assert last["input_ids"][last["length"][0] - 1] == row[slot]
            assert obs["input_ids"][slot, obs["length"][slot, 0] - 1] != row[slot]
    assert [(i["t"], i["slot"], i["response"]) for i in got_infos] == [
        (i["t"], i["slot"], i["response"]) for i in want_infos
    ]
    np.testing.assert_allclose([i["rm_score"] for i in got_infos], [i["rm_score"] for i in want_infos], atol=1e-5)


def test_sb3_face_equals_single_face_and_adds_the_policys_part() -> None:
    want, _ = single_faces()
    venv = LLMTextVecEnv(N, **SETTINGS)
    venv.seed(5)
    venv.reset()
    for t, row in enumerate(actions()):
        _, rewards, _, _ = venv.step(row)
        np.testing.assert_allclose(rewards, want[t], atol=1e-4)
    venv.seed(5)
    venv.reset()
    log_probs = np.random.default_rng(1).uniform(-5, 0, (STEPS, N)).astype(np.float32)
    for t, row in enumerate(actions()):
        carried = ActionTensor.carry(torch.from_numpy(row), torch.from_numpy(log_probs[t]), 1.0).cpu().numpy()
        _, rewards, _, _ = venv.step(carried)
        np.testing.assert_allclose(rewards, want[t] - 0.2 * log_probs[t], atol=1e-4)


@pytest.mark.parametrize("with_policy", [False, True])
def test_deferred_scoring_equals_step_scoring(with_policy: bool) -> None:
    step, deferred = LLMTextVecEnv(N, **SETTINGS), LLMTextVecEnv(N, scoring="deferred", **SETTINGS)
    log_probs = np.random.default_rng(1).uniform(-5, 0, (STEPS, N)).astype(np.float32)
    paid, promised, step_infos, late_infos = [], [], [], []
    for venv in (step, deferred):
        venv.seed(5)
        venv.reset()
    deferred.collecting = True  # as a bound buffer says
    for t, row in enumerate(actions()):
        sent: Any = row
        if with_policy:
            sent = ActionTensor.carry(torch.from_numpy(row), torch.from_numpy(log_probs[t]), 1.0).cpu().numpy()
        _, rewards, dones, infos = step.step(sent)
        paid.append(rewards)
        step_infos += [i for i, d in zip(infos, dones, strict=True) if d]
        _, rewards, dones, infos = deferred.step(sent)
        assert np.isnan(rewards).all()
        promised.append([(e, len(e.response_ids) - 1) for e in deferred.acted if e is not None])
        late_infos += [i for i, d in zip(infos, dones, strict=True) if d]
    episodes = list({id(e): e for row in promised for e, _ in row}.values())
    deferred.task.score_reference(episodes)
    deferred.task.score_responses(episodes)
    for row, want in zip(promised, paid, strict=True):
        got = [deferred.task.rewards(e, i, e.log_probs[i:] if with_policy else None)[0] for e, i in row]
        np.testing.assert_allclose(got, want, atol=1e-4)
    for episode in episodes:
        deferred.task.complete_info(episode)
    for late, now in zip(late_infos, step_infos, strict=True):
        assert late["response"] == now["response"]
        for key in ("rm_score", "ref_log_prob", "kl"):
            np.testing.assert_allclose(late[key], now[key], atol=1e-4)
        np.testing.assert_allclose(late["episode"]["r"], now["episode"]["r"], atol=1e-4)


def test_episode_return_is_the_sum_of_its_rewards() -> None:
    venv = LLMTextVecEnv(N, **SETTINGS)
    venv.reset()
    totals, seen = np.zeros(N), 0
    for row in actions():
        _, rewards, dones, infos = venv.step(row)
        totals += rewards
        for slot in np.flatnonzero(dones):
            assert infos[slot]["episode"]["r"] == pytest.approx(totals[slot], abs=1e-4)
            totals[slot], seen = 0.0, seen + 1
    assert seen > 5


def test_vector_wrapper_adds_the_policys_part() -> None:
    plain = gym.make_vec("LLMText-v0", num_envs=N, **SETTINGS)
    wrapped = VectorPolicyKLReward(gym.make_vec("LLMText-v0", num_envs=N, **SETTINGS), lambda obs, a: -0.01 * a)
    for venv in (plain, wrapped):
        venv.reset(seed=5)
    row = actions()[0]
    np.testing.assert_allclose(wrapped.step(row)[1], plain.step(row)[1] + 0.2 * 0.01 * row, atol=1e-6)


def test_a_policy_at_another_temperature_is_refused() -> None:
    venv = LLMTextVecEnv(N, **SETTINGS)
    venv.reset()
    carried = ActionTensor.carry(torch.full((N,), 5), torch.zeros(N), 0.7).cpu().numpy()
    with pytest.raises(ValueError, match=r"temperature 0\.7, the environment's reference is at 1\.0"):
        venv.step(carried)


def test_synchronous_slots_wait_for_each_other() -> None:
    venv = LLMTextVecEnv(N, episodes="synchronous", **SETTINGS)
    venv.reset()
    first = [e.prompt.text for e in venv.batch.episodes if e is not None]
    row = np.array([2, 9, 9])
    obs, rewards, dones, _ = venv.step(row)
    assert dones.tolist() == [True, False, False]
    for _ in range(SETTINGS["max_new_tokens"] - 2):
        obs, rewards, dones, _ = venv.step(np.array([9, 9, 9]))
        assert obs["length"][0, 0] == 0  # type: ignore[call-overload]
        assert rewards[0] == 0
        assert not dones[0]
    obs, _, dones, _ = venv.step(np.array([9, 9, 9]))
    assert dones.tolist() == [False, True, True]
    assert (obs["length"] > 0).all()  # type: ignore[call-overload]
    assert [e.prompt.text for e in venv.batch.episodes if e is not None] != first


def test_checkers_have_nothing_to_say() -> None:
    """Invariant 6."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gymnasium_check(gym.make("LLMText-v0").unwrapped, skip_render_check=True)
        sb3_check(LLMTextEnv(**SETTINGS), skip_render_check=True)
        venv = gym.make_vec("LLMText-v0", num_envs=2, **SETTINGS)
        obs, _ = venv.reset(seed=0)
        assert venv.observation_space.contains(obs)
        venv.action_space.seed(0)
        for _ in range(10):
            obs, rewards, terminated, truncated, _ = venv.step(venv.action_space.sample())
            assert venv.observation_space.contains(obs)
            assert rewards.shape == terminated.shape == truncated.shape == (2,)


def test_returned_arrays_are_not_changed_later() -> None:
    venv = gym.make_vec("LLMText-v0", num_envs=2, **SETTINGS)
    obs, _ = venv.reset(seed=0)
    kept = {k: v.copy() for k, v in obs.items()}
    venv.step(np.array([5, 6]))
    assert all((obs[k] == kept[k]).all() for k in obs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_envs": 0}, "num_envs=0"),
        ({"num_envs": 2, "max_episode_steps": 5}, "max_new_tokens"),
    ],
)
def test_unusable_vector_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LLMTextVectorEnv(**arguments)


def test_vector_options() -> None:
    venv = LLMTextVectorEnv(2, **SETTINGS)
    venv.reset(options={"prompt": ["one", "two"]})
    assert [e.prompt.text for e in venv.batch.episodes if e is not None] == ["one", "two"]
    venv.reset(options={"prompt_index": 4})
    assert [e.prompt.index for e in venv.batch.episodes if e is not None] == [4, 4]
    with pytest.raises(ValueError, match="3 entries for 2 environments"):
        venv.reset(options={"prompt": ["one", "two", "three"]})
    with pytest.raises(ValueError, match="no 'seed'"):
        venv.reset(options={"seed": 1})


@pytest.mark.parametrize("vectorization_mode", ["sync", "vector_entry_point"])
def test_make_vec_in_both_modes(vectorization_mode: str) -> None:
    venv = gym.make_vec("LLMText-v0", num_envs=2, vectorization_mode=vectorization_mode, **SETTINGS)
    venv.reset(seed=0)
    for _ in range(8):
        obs, *_ = venv.step(np.array([2, 9]))
    assert obs["input_ids"].shape == (2, 22)


def test_a_single_environment_behind_sb3s_dummy_venv_pays_the_full_reward() -> None:
    """`actions[i]` keeps its log-prob, through Monitor and Gymnasium's wrappers, to `step`."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.vec_env import DummyVecEnv

    from agents.policies.actor_critic import LLMActorCriticPolicy

    venv = DummyVecEnv(
        [lambda: gym.make("LLMText-v0", max_new_tokens=6, max_prompt_length=12, kl_coef=0.5) for _ in range(2)]
    )
    model = PPO(LLMActorCriticPolicy, venv, n_steps=16, batch_size=32, n_epochs=1, seed=0)
    model.learn(32)
    rewards = model.rollout_buffer.rewards.reshape(-1)
    # the policy is the reference: -β (log π - log π_ref) is 0, and only scores are paid
    assert (np.abs(rewards) < 1e-4).mean() > 0.5
    assert (np.abs(rewards) > 0.05).any()
    hot = PPO(LLMActorCriticPolicy, venv, n_steps=16, batch_size=32, policy_kwargs={"temperature": 2.0})
    with pytest.raises(ValueError, match=r"samples at temperature 2\.0, the environment's reference is at 1\.0"):
        hot.learn(32)
