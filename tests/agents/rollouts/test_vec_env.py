"""The training environment in other people's hands: wrappers, evaluations, and SB3's own vectorized environments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecCheckNan, VecMonitor, VecNormalize

import llm_env  # noqa: F401
from agents import LLMActorCriticPolicy, LLMTextVecEnv, TextMetricsCallback, TokenRolloutBuffer, make_algorithm

SMALL: dict[str, Any] = {"max_new_tokens": 6, "max_prompt_length": 12}


def environment(n_envs: int = 4, **settings: Any) -> LLMTextVecEnv:
    return LLMTextVecEnv(n_envs, episodes="synchronous", scoring="deferred", **{**SMALL, **settings})


def test_evaluate_policy_on_the_training_environment_gives_numbers() -> None:
    model = make_algorithm("ppo", n_envs=4, seed=0, env_kwargs=SMALL)
    model.learn(2 * 4 * 6)
    mean, std = evaluate_policy(model, model.get_env(), n_eval_episodes=8, deterministic=False)  # type: ignore[arg-type]
    assert np.isfinite([mean, std]).all()
    with pytest.raises(RuntimeError, match="somebody else reset or stepped it since the last rollout"):
        model.learn(2 * 4 * 6, reset_num_timesteps=False)
    model.learn(2 * 4 * 6)  # training begins anew, deferred again
    assert np.isfinite(model.rollout_buffer.rewards).all()  # type: ignore[attr-defined]


def test_an_evaluation_is_paid_what_training_is() -> None:
    """The reward of an evaluated response is the formula's, -β·log π included."""
    model = make_algorithm("ppo", n_envs=2, seed=0, env_kwargs={**SMALL, "kl_coef": 0.5})
    env: Any = model.env
    obs = env.reset()
    total, infos = np.zeros(2), {}
    for _ in range(6):
        actions, _ = model.predict(obs)
        obs, rewards, dones, step_infos = env.step(actions)
        total += rewards
        infos.update({i: step_infos[i] for i in np.flatnonzero(dones)})
    for slot, info in infos.items():
        assert info["episode"]["r"] == pytest.approx(total[slot], abs=1e-4)
        assert total[slot] == pytest.approx(info["rm_score"] - 0.5 * info["kl"], abs=1e-4)
        assert info["kl"] == pytest.approx(0, abs=1e-3)  # nothing was learned yet: with log π left out it would not be


def test_eval_callback_on_an_environment_of_its_own_gives_numbers(tmp_path: Path) -> None:
    callback = EvalCallback(
        environment(2), n_eval_episodes=4, eval_freq=6, log_path=str(tmp_path), verbose=0, warn=False
    )
    make_algorithm("ppo", n_envs=4, seed=0, env_kwargs=SMALL).learn(2 * 4 * 6, callback=callback)
    results = np.load(tmp_path / "evaluations.npz")["results"]
    assert results.shape == (2, 4)
    assert np.isfinite(results).all()


@pytest.mark.filterwarnings("ignore:The environment is already wrapped with a `Monitor`")
def test_vec_monitor_reports_true_returns_and_says_what_it_costs(tmp_path: Path) -> None:
    plain = make_algorithm("ppo", env=environment(), seed=0)
    venv = VecMonitor(environment(), str(tmp_path / "monitor.csv"))
    with pytest.warns(UserWarning, match="VecMonitor around LLMTextVecEnv reads rewards as they come"):
        model = make_algorithm("ppo", env=venv, seed=0)
    for each in (plain, model):
        each.set_random_seed(3)
        each.learn(2 * 4 * 6)
    returns = [info["r"] for info in model.ep_info_buffer or []]
    assert returns
    np.testing.assert_allclose(returns, [info["r"] for info in plain.ep_info_buffer or []], atol=1e-4)
    venv.close()
    lines = (tmp_path / "monitor.csv").read_text().splitlines()[2:]
    np.testing.assert_allclose([float(line.split(",")[0]) for line in lines], returns, atol=1e-4)
    for one, other in zip(plain.policy.parameters(), model.policy.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_vec_normalize_is_refused_where_it_would_be_ignored_or_break() -> None:
    with pytest.raises(ValueError, match=r"norm_reward=True\) around .*scoring='step', or .*whiten_rewards=True"):
        make_algorithm("ppo", env=VecNormalize(environment(), norm_obs=False))
    with pytest.raises((TypeError, ValueError), match="norm_obs=False"):
        make_algorithm("ppo", env=VecNormalize(environment(), norm_reward=False))
    with pytest.raises(TypeError, match="norm_obs=False"):
        PPO(LLMActorCriticPolicy, VecNormalize(environment()), n_steps=6, batch_size=12).learn(24)


def test_vec_normalize_scales_rewards_that_come_at_each_step() -> None:
    venv = VecNormalize(LLMTextVecEnv(4, episodes="synchronous", **SMALL), norm_obs=False, clip_reward=0.5)
    model = make_algorithm("ppo", env=venv, seed=0)
    model.learn(2 * 4 * 6)
    rewards = model.rollout_buffer.rewards  # type: ignore[attr-defined]
    assert np.isfinite(venv.ret_rms.var)
    assert np.abs(rewards).max() <= 0.5 + 1e-6


def test_other_wrappers_see_numbers() -> None:
    with pytest.warns(UserWarning, match="VecCheckNan around LLMTextVecEnv"):
        model = make_algorithm("ppo", env=VecCheckNan(environment(), raise_exception=True), seed=0)
    model.learn(4 * 6)


def test_a_buffer_that_is_not_bound_works_on_steps_and_says_what_it_lacks() -> None:
    settings: dict[str, Any] = {"n_steps": 6, "batch_size": 24, "rollout_buffer_class": TokenRolloutBuffer}
    venv = environment()
    model = PPO(LLMActorCriticPolicy, venv, **settings)
    model.learn(4 * 6)  # nobody defers: each step is paid
    assert np.isfinite(model.rollout_buffer.rewards).all()
    with pytest.raises(RuntimeError, match=r"not bound to an environment. Call model.rollout_buffer.bind"):
        _ = model.rollout_buffer.task
    model.rollout_buffer.reset()
    venv.collecting = True
    obs = venv.batch.observation()
    step = (obs, np.full(4, 7), venv.step(np.full(4, 7))[1], np.ones(4), torch.zeros(4, 1), torch.zeros(4))
    with pytest.raises(RuntimeError, match=r"model.rollout_buffer.bind\(model.policy, env\)"):
        model.rollout_buffer.add(*step)
    with pytest.raises(TypeError, match="LLMTextVecEnv"):
        model.rollout_buffer.bind(model.policy, make_vec_env("CartPole-v1"))


def test_mixed_precision_by_hand_needs_a_bound_buffer() -> None:
    settings: dict[str, Any] = {"n_steps": 6, "batch_size": 24, "rollout_buffer_class": TokenRolloutBuffer}
    venv = environment(mixed_precision="bf16")
    model = PPO(LLMActorCriticPolicy, venv, policy_kwargs={"mixed_precision": "bf16"}, learning_rate=0.0, **settings)
    with pytest.raises(RuntimeError, match=r"the buffer has to score log-probs again.*bind"):
        model.learn(4 * 6)
    model.rollout_buffer.bind(model.policy, venv)
    model.learn(4 * 6)
    assert abs(float(model.logger.name_to_value["train/approx_kl"])) < 1e-6


def mean_reward(vec_env_cls: Any) -> float:
    """Stock PPO with our policy on SB3's own vectorized environments: the mean token reward of its first rollout."""
    venv = make_vec_env("llm_env:LLMText-v0", 2, seed=0, vec_env_cls=vec_env_cls, env_kwargs={**SMALL, "kl_coef": 0.5})
    try:
        model = PPO(LLMActorCriticPolicy, venv, n_steps=12, batch_size=12, n_epochs=1, seed=0)
        model.learn(24)
        return float(model.rollout_buffer.rewards.mean())
    finally:
        venv.close()


@pytest.mark.slow
def test_subproc_vec_env_carries_the_log_probs() -> None:
    assert mean_reward(SubprocVecEnv) == pytest.approx(mean_reward(DummyVecEnv), abs=1e-4)


def test_a_sampled_action_survives_the_pipe() -> None:
    import pickle

    policy: Any = make_algorithm("ppo", n_envs=2, seed=0, env_kwargs=SMALL).policy
    obs, _ = policy.obs_to_tensor(environment(2).reset())
    with torch.no_grad():
        actions, _, log_probs = policy(obs)
    for action, log_prob in zip(actions.cpu().numpy(), log_probs, strict=True):
        again = pickle.loads(pickle.dumps(action))
        assert (int(again), again.log_prob, again.temperature) == (int(action), pytest.approx(float(log_prob)), 1.0)


def test_a_callback_that_stops_in_a_rollout_leaves_an_environment_that_pays() -> None:
    class Stop(TextMetricsCallback):
        def _on_step(self) -> bool:
            return self.n_calls < 3

    model = make_algorithm("ppo", n_envs=4, seed=0, env_kwargs=SMALL)
    model.learn(10**6, callback=Stop())
    mean, _ = evaluate_policy(model, model.get_env(), n_eval_episodes=4)  # type: ignore[arg-type]
    assert np.isfinite(mean)
