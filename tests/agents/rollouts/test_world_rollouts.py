"""Rollouts with a world: what is trained on, what is not, and that it is learned."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv

from agents import make_algorithm
from agents.algorithms.table import ALGORITHMS
from agents.policies.actor_critic import LLMActorCriticPolicy
from agents.rollouts.advantages import gae
from agents.rollouts.buffer import TokenRolloutBuffer
from agents.rollouts.vec_env import text_env
from llm_env.env import LLMTextEnv
from llm_env.lm.packing import pack
from tests.conftest import short_model
from tests.worlds import Echo, Hint

WORLD: dict[str, Any] = {
    "world": lambda: Echo(3),
    "max_new_tokens": 12,
    "max_turn_tokens": 4,
    "max_prompt_length": 16,
    "kl_coef": 0.2,
}


def collected(name: str = "ppo", n_envs: int = 6, episodes: str | None = None, **settings: Any) -> Any:
    """An algorithm after a rollout and an update at learning rate 0."""
    env = {**WORLD, **settings.pop("env", {})}
    model = make_algorithm(
        name, n_envs=n_envs, episodes=episodes, env_kwargs=env, seed=0, learning_rate=0.0, **settings
    )
    model.learn(n_envs * 12)
    return model


@pytest.mark.parametrize("critic", ["head", "actor"])
def test_packed_scores_are_those_of_one_prefix_at_a_time(critic: str) -> None:
    """Invariant 3: log-probs, values and entropies of the policy's tokens, and of no others."""
    model = collected(critic=critic)
    policy, buffer = model.policy, model.rollout_buffer
    with torch.no_grad():  # a head of zeros would agree with anything
        for parameter in policy.critic.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    for segment in buffer.segments:
        packed = pack([segment.ids], [segment.places], policy.device)
        assert packed.targets.tolist() == segment.actions
        with torch.no_grad():
            values, log_probs, entropy = policy.evaluate_actions(packed, packed.targets)
        assert len(values) == len(segment.actions) < len(segment.ids) - len(segment.context)
        for i, place in enumerate(segment.places):
            obs = {
                "input_ids": torch.tensor([segment.ids[:place]]),
                "length": torch.tensor([[place]]),
            }
            with torch.no_grad():
                value, log_prob, one_entropy = policy.evaluate_actions(obs, torch.tensor([segment.actions[i]]))
            np.testing.assert_allclose(values[i], value[0], atol=1e-4)
            np.testing.assert_allclose(log_probs[i], log_prob[0], atol=1e-4)
            np.testing.assert_allclose(entropy[i], one_entropy[0], atol=1e-3)


def test_the_gradient_is_that_of_the_policys_tokens() -> None:
    """Invariant 3: the gradient of packed log-probs is that of a plain pass under a mask written by hand."""
    model = collected(critic="head")
    policy = model.policy
    segments = model.rollout_buffer.segments[:3]
    packed = pack([s.ids for s in segments], [s.places for s in segments], policy.device)
    _, log_probs, _ = policy.evaluate_actions(packed, packed.targets)
    policy.zero_grad()
    log_probs.sum().backward()
    got = {name: p.grad.clone() for name, p in policy.actor.named_parameters() if p.grad is not None}
    policy.zero_grad()
    total = torch.zeros(())
    for segment in segments:
        ids = torch.tensor([segment.ids])
        logits = policy.lm.model(input_ids=ids).logits[0].float()
        every = torch.log_softmax(logits[:-1], -1).gather(1, ids[0, 1:, None])[:, 0]
        mask = torch.zeros(len(segment.ids))
        mask[segment.places] = 1.0
        total = total + (every * mask[1:]).sum()
    total.backward()
    assert got
    for name, parameter in policy.actor.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(got[name], parameter.grad, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("name", [name for name, row in ALGORITHMS.items() if row.rollouts and name != "remax"])
def test_at_learning_rate_zero_the_ratio_is_one(name: str) -> None:
    """Invariant 1 with turns."""
    settings = {"n_epochs": 2} if "n_epochs" in ALGORITHMS[name].defaults else {}
    env = {"min_new_tokens": 2} if name == "maskable_ppo" else {}
    model = collected(name, n_envs=8, env=env, **settings)
    if name not in ("a2c", "trpo"):
        assert model.logger.name_to_value["train/approx_kl"] == pytest.approx(0.0, abs=1e-6)
        assert model.logger.name_to_value["train/clip_fraction"] == 0.0
    segments = model.rollout_buffer.segments
    assert all(s.is_whole for s in segments)
    assert any(len(s.ids) > len(s.context) + len(s.actions) for s in segments)


@pytest.mark.parametrize(
    "settings",
    [
        {"env": {"kl_estimator": "exact"}},
        {"kl_in": "loss", "env": {"kl_estimator": "exact"}},
        {"kl_in": "both", "env": {"kl_estimator": "k3"}},
        {"mixed_precision": "bf16"},
        {"lora_rank": 2},
        {"micro_batch_tokens": 60},
        {"critic": "actor", "micro_batch_tokens": 60, "gradient_checkpointing": True},
    ],
    ids=str,
)
def test_what_goes_with_single_turns_goes_with_worlds(settings: dict[str, Any]) -> None:
    model = collected(**{"critic": "head", **settings})
    assert model.logger.name_to_value["train/approx_kl"] == pytest.approx(0.0, abs=1e-6)
    segments = model.rollout_buffer.segments
    assert all(np.isfinite(s.rewards).all() and len(s.rewards) == len(s.actions) for s in segments)
    place = settings.get("kl_in", "reward")
    if (
        place != "loss" and settings.get("mixed_precision") is None
    ):  # the policy is the reference: the world's pay alone
        for segment in segments:
            assert segment.episode is not None
            assert sum(segment.rewards) == pytest.approx(segment.episode.world_return, abs=1e-2)
    if place != "reward":
        assert model.logger.name_to_value["train/kl_loss"] == pytest.approx(0.0, abs=1e-3)


def test_a_hand_computed_return_and_its_advantages_across_the_gap() -> None:
    """Two turns, paid 1 and 2 at their last tokens; GAE at γ = 1 knows no gap between them."""
    raw: dict[str, Any] = {"rollout_buffer_kwargs": {"whiten_advantages": False}}
    model = collected(critic="none", n_envs=2, env={"world": lambda: Echo(2), "kl_coef": 0.0}, gae_lambda=0.5, **raw)
    buffer = model.rollout_buffer
    for segment, first in zip(buffer.segments, buffer._offsets, strict=False):
        assert segment.episode is not None
        ends = [turn.end - 1 for turn in segment.episode.turns]
        want = np.zeros(len(segment.actions))
        want[ends] = [1.0, 2.0]
        np.testing.assert_allclose(segment.rewards, want)
        # Without values A_t = Σ_l λ^l r_{t+l}, counted in the policy's tokens.
        advantages = [
            sum(0.5 ** (end - t) * pay for end, pay in zip(ends, (1.0, 2.0), strict=True) if end >= t)
            for t in range(len(want))
        ]
        np.testing.assert_allclose(buffer.advantages[first : first + len(want)], advantages, atol=1e-6)
        assert ends[1] - ends[0] <= 4
    values = np.array([[0.5, 1.5, 0.25, 0.75]])
    rewards = np.array([[0.0, 1.0, 0.0, 2.0]])
    by_hand = [None, None, 0.75 - 0.25 + 0.5 * (2.0 - 0.75), 2.0 - 0.75]
    by_hand[1] = 1.0 + 0.25 - 1.5 + 0.5 * by_hand[2]
    by_hand[0] = 1.5 - 0.5 + 0.5 * by_hand[1]
    got = gae(rewards, values, np.array([4]), np.zeros(1), 1.0, 0.5)[0]
    np.testing.assert_allclose(got, np.array(by_hand, dtype=float))


@pytest.mark.parametrize("critic", ["head", "actor"])
def test_continuous_episodes_are_cut_by_rollouts_and_go_on(critic: str) -> None:
    """Segments that begin or end in the middle of an episode have the whole state before them, answers included."""
    model = make_algorithm(
        "ppo",
        n_envs=3,
        episodes="continuous",
        env_kwargs={**WORLD, "world": lambda: Echo(6), "max_new_tokens": 24},
        seed=0,
        learning_rate=0.0,
        n_steps=7,
        batch_size=40,
        critic=critic,
    )
    started = []
    for rollouts in range(1, 6):
        model.learn(3 * 7, reset_num_timesteps=rollouts == 1)
        for segment in model.rollout_buffer.segments:
            episode = segment.episode
            assert episode is not None
            assert segment.ids == episode.ids[: len(segment.ids)]
            assert segment.places == episode.places[segment.start : segment.start + len(segment.actions)]
            started.append(segment.start)
            unfinished = not segment.finished
            assert unfinished == (not episode.done)
        np.testing.assert_allclose(model.logger.name_to_value["train/approx_kl"], 0.0, atol=1e-6)
    assert any(started)


def test_the_state_after_an_unfinished_segment_holds_the_answer() -> None:
    model = make_algorithm(
        "ppo", n_envs=4, episodes="continuous", env_kwargs=WORLD, seed=1, learning_rate=0.0, n_steps=4, critic="actor",
        batch_size=16,
    )  # fmt: skip
    asked: list[list[list[int]]] = []
    policy = model.policy
    compute = policy.state_values
    policy.state_values = lambda sequences: (asked.append(sequences), compute(sequences))[1]
    model.learn(16)
    ids = [e.ids for e in text_env(model.env).batch.episodes if e is not None]
    assert asked
    assert all(sequence in ids for sequence in asked[0])


def test_sb3s_own_buffer_gives_the_same_update() -> None:
    """Invariant 5 with turns: stock `DictRolloutBuffer` on single environments against packed batches of the same actions."""
    env = {**WORLD, "kl_coef": 0.0}

    def updated(buffer: Any) -> Any:
        venv = DummyVecEnv([lambda: LLMTextEnv(**env) for _ in range(2)])
        venv.seed(3)
        model = PPO(
            LLMActorCriticPolicy,
            venv,
            n_steps=24,
            batch_size=48,
            n_epochs=1,
            gamma=1.0,
            normalize_advantage=False,
            seed=0,
            rollout_buffer_class=buffer,
            policy_kwargs={"critic": "head"},
            learning_rate=1e-3,
        )
        venv.seed(3)
        model.learn(48)
        return model

    ours, theirs = updated(TokenRolloutBuffer), updated(None)
    assert any(len(s.ids) > len(s.context) + len(s.actions) for s in ours.rollout_buffer.segments)
    weights = dict(theirs.policy.named_parameters())
    moved = 0.0
    for name, parameter in ours.policy.named_parameters():
        torch.testing.assert_close(parameter, weights[name], atol=2e-4, rtol=1e-3)
        moved = max(moved, float(parameter.detach().abs().max()))
    assert moved > 0


@pytest.mark.parametrize("name", ["dqn", "qr_dqn", "recurrent_ppo", "remax"])
def test_algorithms_that_cannot_have_worlds_say_why(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} cannot be used with a world: its "):
        make_algorithm(name, env_kwargs={**WORLD, "model": "no/such/folder"})


def test_the_log_has_the_ends_as_rates() -> None:
    from agents.callbacks.metrics import TextMetricsCallback

    model = make_algorithm("ppo", n_envs=4, env_kwargs=WORLD, seed=0)
    callback = TextMetricsCallback()
    model.learn(4 * 12, callback)
    ends = {name: value for name, value in callback.last.items() if name.startswith("rollout/end/")}
    assert set(ends) == {
        f"rollout/end/{n}"
        for n in ("world", "response_cap", "turn_cap", "context_full", "world_error", "world_timeout")
    }
    assert sum(ends.values()) == pytest.approx(1.0)
    assert ends["rollout/end/world"] > 0.5
    assert 1 < callback.last["rollout/turns"] <= 3
    assert callback.last["rollout/rm_score"] <= 6.0


def test_responses_in_worlds_are_the_same_for_one_seed() -> None:
    model = collected()
    task = text_env(model.env).task
    first, again = (model.policy.respond(task, [None] * 5, seed=4) for _ in range(2))
    assert [e.ids for e in first] == [e.ids for e in again]
    assert len({e.prompt.text for e in first}) > 1
    assert all(e.done and e.rm_score is not None and math.isfinite(e.kl) for e in first)
    other = model.policy.respond(task, [None] * 5, seed=5)
    assert [e.prompt.text for e in first] != [e.prompt.text for e in other]


def test_tokens_are_read_once() -> None:
    """While collecting, the actor reads each token of a conversation once, the world's too."""
    model = make_algorithm("ppo", n_envs=3, env_kwargs=WORLD, seed=0, critic="head", learning_rate=0.0)
    read: list[int] = []
    lm = model.policy.lm
    real = lm.hidden

    def counted(input_ids: torch.Tensor, **kwargs: Any) -> Any:
        if kwargs.get("use_cache"):
            read.append(input_ids.shape[1])
        return real(input_ids, **kwargs)

    lm.hidden = counted
    model.learn(3 * 12)
    longest = max(e.length for s in model.rollout_buffer.segments if (e := s.episode) is not None)
    # Passes are as wide as their longest row. The decoder's two checks read some tokens more.
    assert sum(read) < 3 * longest
    assert max(read) < longest


def test_two_turns_are_learned() -> None:
    """The first turn earns nothing by itself: it has to ask so that the second can be paid."""
    env = {
        "world": Hint,
        "max_new_tokens": 2,
        "max_turn_tokens": 1,
        "max_prompt_length": 8,
        "kl_coef": 0.0,
        "temperature": 2.0,
        "allowed_tokens": [" The", " I", " It"],
    }
    model = make_algorithm(
        "maskable_ppo", n_envs=64, env_kwargs=env, seed=0, learning_rate=2e-3, critic="head", n_epochs=2
    )
    scores: list[float] = []

    venv = text_env(model.env)
    for _ in range(14):
        model.learn(128, reset_num_timesteps=False)
        scores.append(float(np.mean([i["rm_score"] for i in venv.ended])))
        venv.ended.clear()
    assert np.mean(scores[:2]) < 0.3
    assert np.mean(scores[-3:]) > 0.8


def test_a_slot_that_is_full_waits_beside_others_that_go_on(tmp_path: Path) -> None:
    env = {
        "model": short_model(tmp_path),
        "world": lambda: Echo(50),
        "max_prompt_length": 10,
        "max_new_tokens": 30,
        "kl_coef": 0.0,
    }
    env |= {"max_turn_tokens": 4, "max_world_tokens": 12, "max_turns": 40, "world_lag": 3}
    algorithm = make_algorithm("ppo", n_envs=24, env_kwargs=env, seed=0, learning_rate=0.0, critic="head")
    algorithm.learn(1)
    ends = [s.episode.end for s in algorithm.rollout_buffer.segments]
    assert "context_full" in ends
    assert algorithm.logger.name_to_value["train/approx_kl"] == pytest.approx(0.0, abs=1e-6)


def test_slots_that_wait_for_their_worlds_sit_out_a_number_of_steps() -> None:
    """With a lag the others go on; the course depends on the seed alone, and each episode is whole."""

    def trained() -> Any:
        env = {**WORLD, "world_lag": 5, "max_turns": 3}
        model = make_algorithm("ppo", n_envs=6, env_kwargs=env, seed=0, learning_rate=0.0, critic="head")
        assert text_env(model.env).round_steps == 12 + 5 * 3
        model.learn(6 * 27)
        return model

    one, other = trained(), trained()
    segments = one.rollout_buffer.segments
    assert [s.ids for s in segments] == [s.ids for s in other.rollout_buffer.segments]
    assert len(segments) == 6
    for segment in segments:
        episode = segment.episode
        assert episode is not None
        assert segment.is_whole
        assert segment.places == episode.places
        assert segment.actions == episode.response_ids
        assert len(episode.turns) == 3
        paid = np.zeros(len(segment.actions))
        paid[[turn.end - 1 for turn in episode.turns]] = [1.0, 2.0, 3.0]
        np.testing.assert_allclose(segment.rewards, paid, atol=1e-4)  # the policy is the reference
    assert one.logger.name_to_value["train/approx_kl"] == pytest.approx(0.0, abs=1e-6)
    assert sum(len(s.actions) for s in segments) == text_env(one.env).generated_tokens


def test_with_a_lag_others_write_on_while_a_world_works() -> None:
    steps = 0
    went_on: list[bool] = []

    class Waits(Echo):
        """Answers once two more steps were made, for which it would wait in vain without a lag."""

        def step(self, text: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
            asked, until = steps, time.monotonic() + 10
            while steps < asked + 2 and time.monotonic() < until:
                time.sleep(0.001)
            went_on.append(steps >= asked + 2)
            return super().step(text)

    class Counts(BaseCallback):
        def _on_step(self) -> bool:
            nonlocal steps
            steps += 1
            return True

    env = {
        **WORLD,
        "world": lambda: Waits(2),
        "max_new_tokens": 24,
        "max_turn_tokens": 12,
        "max_turns": 2,
        "world_lag": 8,
    }
    model = make_algorithm("ppo", n_envs=16, env_kwargs=env, seed=0, critic="head")
    model.learn(16 * text_env(model.env).round_steps, callback=Counts())
    assert len(went_on) >= 16
    assert all(went_on)
