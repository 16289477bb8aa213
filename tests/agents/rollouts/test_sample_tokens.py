"""What is kept of a sample's tokens: by hand, one at a time, and without a trace in the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agents import make_algorithm
from agents.rollouts.sample_tokens import TokenCritic, token_columns, token_critic
from agents.rollouts.vec_env import text_env
from tests.agents.cli.test_train import final_weights, run
from tests.agents.small_runs import SMALL, made, weights_of
from tests.worlds import Echo


def sampled(model: Any, count: int = 3) -> tuple[Any, list[Any]]:
    task = text_env(model.env).task
    prompts = task.prompts.spread(count)
    return task, model.policy.respond(task, prompts, 0)


def moved(**settings: Any) -> Any:
    model = made(**settings)
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return model


@pytest.mark.parametrize("settings", [{}, {"critic": "head"}, {"env": {"kl_estimator": "exact"}}])
def test_values_are_the_critics_and_advantages_those_of_a_slow_loop(settings: dict[str, Any]) -> None:
    model = moved(gae_lambda=0.9, **settings)
    task, episodes = sampled(model)
    critic = token_critic(model)
    assert critic is not None
    for episode, (values, advantages) in zip(episodes, critic.judge(task, episodes), strict=True):
        assert advantages is not None
        prompt, n = list(episode.prompt.ids), len(episode.response_ids)
        states = [prompt + episode.response_ids[:t] for t in range(n)]
        alone = [float(model.policy.state_values([state])[0]) for state in states]
        np.testing.assert_allclose(values, alone, atol=1e-4)
        penalty = ratio = np.array(episode.log_probs) - np.array(episode.ref_log_probs)
        if settings.get("env"):
            penalty = np.array(episode.exact_kl)
            assert (penalty > 0).all()
        rewards = -task.kl.coef * penalty
        rewards[-1] += episode.final_score
        advantage = 0.0
        for t in reversed(range(n)):
            after = alone[t + 1] if t + 1 < n else 0.0
            advantage = rewards[t] + after - alone[t] + 0.9 * advantage
            # A token pays its own log-ratio, and the KL of those that come after it.
            assert advantages[t] == pytest.approx(advantage + task.kl.coef * (penalty[t] - ratio[t]), abs=1e-3)


def test_columns_make_the_response_and_its_kl() -> None:
    model = moved()
    task, episodes = sampled(model)
    numbers = [(np.arange(len(e.response_ids)) + 0.12346, -np.arange(len(e.response_ids)) / 3) for e in episodes]
    for episode, judged in zip(episodes, numbers, strict=True):
        columns = token_columns(task, episode, judged)
        assert set(columns) == {"text", "kl", "value", "advantage"}
        assert "".join(columns["text"]).replace("■", "") == episode.response_text
        assert sum(columns["kl"]) == pytest.approx(episode.kl, abs=1e-3)
        assert columns["value"][:2] == [0.1235, 1.1235]
        assert columns["advantage"][1] == -0.3333
    episodes[0].log_probs.pop()  # not known of every token
    assert set(token_columns(task, episodes[0])) == {"text"}


def test_what_a_world_wrote_has_no_numbers() -> None:
    env = {"max_turn_tokens": 2, "max_turns": 3, "world": lambda: Echo(3)}
    model = moved(env=env, critic="head", advantages="turn_gae")
    task, (episode, *_) = sampled(model, 2)
    critic = token_critic(model)
    assert critic is not None
    assert critic.advantages == "turn_gae"
    ((values, advantages),) = critic.judge(task, [episode])
    assert advantages is not None
    columns = token_columns(task, episode, (values, advantages))
    texts = [columns["text"][place] for place in columns["world"]]
    assert len(texts) == len(episode.turns) == 3
    assert all("Heard" in text for text in texts)
    for name, whole in (("kl", None), ("value", values), ("advantage", advantages)):
        assert [i for i, number in enumerate(columns[name]) if number is None] == columns["world"]
        if whole is not None:
            np.testing.assert_allclose([n for n in columns[name] if n is not None], whole, atol=1e-4)
    # Within a turn all tokens share what the turn brought, by the estimator that the run is trained with.
    turn = episode.turns[1]
    assert len(set(advantages[turn.start : turn.end])) == 1
    assert len({advantages[t.start] for t in episode.turns}) == 3


def test_no_advantage_where_the_rewards_masks_are_lost() -> None:
    env = {**SMALL, "top_k": 50, "kl_estimator": "exact"}
    model = make_algorithm("maskable_ppo", n_envs=8, seed=0, env_kwargs=env)
    task, (episode, *_) = sampled(model)
    critic = token_critic(model)
    assert critic is not None
    (judged,) = critic.judge(task, [episode])
    assert set(token_columns(task, episode, judged)) == {"text", "kl", "value"}


@pytest.mark.parametrize(("algo", "settings"), [("grpo", {"group_size": 4}), ("dqn", {})])
def test_without_a_critic_there_is_none_to_ask(algo: str, settings: dict[str, Any]) -> None:
    model = make_algorithm(algo, n_envs=8, seed=0, env_kwargs=SMALL, **settings)
    assert token_critic(model) is None
    task, (episode, *_) = sampled(model)
    assert set(token_columns(task, episode)) == {"text", "kl"}


def test_to_ask_changes_nothing() -> None:
    model = moved()
    task, episodes = sampled(model)
    before, state = weights_of(model.policy).clone(), torch.get_rng_state()
    numbers = np.random.get_state()[1].copy()
    critic = token_critic(model)
    assert isinstance(critic, TokenCritic)
    critic.judge(task, episodes)
    assert torch.equal(before, weights_of(model.policy))
    assert torch.equal(state, torch.get_rng_state())
    assert (numbers == np.random.get_state()[1]).all()
    assert all(p.grad is None for p in model.policy.parameters())


@pytest.mark.slow
def test_a_run_with_samples_is_the_run_without(tmp_path: Path) -> None:
    assert run(tmp_path / "with", "--n-samples", "3", "--sample-every", "1", iterations=2) == 0
    assert run(tmp_path / "without", "--n-samples", "0", iterations=2) == 0
    ours, theirs = final_weights(tmp_path / "with"), final_weights(tmp_path / "without")
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)
    assert (tmp_path / "with" / "samples.jsonl").is_file()
