"""`TextPPO` against stock PPO, GRPO's groups, and DAPO's dynamic sampling."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.logger import configure

from agents import ALGORITHMS, TextMetricsCallback, make_algorithm
from agents.algorithms.text_ppo import TextPPO
from agents.rollouts.vec_env import text_env
from llm_env.reward.kl import KLPenalty

SMALL: dict[str, Any] = {"max_new_tokens": 6, "max_prompt_length": 12}


def quiet(model: Any) -> Any:
    model.set_logger(configure(None, []))
    return model


@pytest.mark.parametrize("settings", [
    {"critic": "reward_model", "n_epochs": 2},
    {"critic": "detached_head", "ent_coef": 0.01, "clip_range_vf": 0.2, "normalize_advantage": True},
    {"critic": "head", "target_kl": 1e-4, "critic_lr_scale": 3.0},
])  # fmt: skip
def test_without_further_terms_an_update_is_stock_ppos_bit_for_bit(settings: dict[str, Any]) -> None:
    common: dict[str, Any] = {"n_envs": 8, "seed": 0, "env_kwargs": SMALL, **settings}
    ours = quiet(make_algorithm("ppo", loss_aggregation="token", **common))
    stock = quiet(make_algorithm("ppo", **common))
    assert (type(ours), type(stock)) == (TextPPO, PPO)
    start = [p.clone() for p in stock.policy.parameters()]
    for model in (ours, stock):
        model.set_random_seed(3)
        model.learn(2 * 8 * 6)
    for a, b in zip(ours.policy.parameters(), stock.policy.parameters(), strict=True):
        assert torch.equal(a, b)
    assert any(not torch.equal(before, after) for before, after in zip(start, stock.policy.parameters(), strict=True))
    want, got = stock.logger.name_to_value, ours.logger.name_to_value
    for name in [n for n in want if n.startswith("train/")]:
        assert got[name] == pytest.approx(float(want[name]), rel=1e-5), name


class Distracted(TextPPO):
    """TextPPO with a term of its own, whose setting is an argument."""

    def __init__(self, *args: Any, distraction: float = 0.0, **kwargs: Any) -> None:
        self.distraction = distraction
        super().__init__(*args, **kwargs)

    def further_terms(self, data: Any, log_prob: Any, entropy: Any, values: Any) -> dict[str, tuple[float, Any]]:
        assert data.old_log_prob.shape == log_prob.shape == entropy.shape == values.shape
        return {"distraction_loss": (self.distraction, -entropy.mean())}


def test_a_subclass_adds_a_term_to_the_loss_and_to_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """The entropy bonus is such a term: with its coefficient the update is the bonus's, to rounding."""
    row = dataclasses.replace(ALGORITHMS["ppo"], cls=Distracted)
    monkeypatch.setitem(ALGORITHMS, "distracted", row)  # type: ignore[arg-type]
    common: dict[str, Any] = {"n_envs": 8, "seed": 0, "env_kwargs": SMALL, "critic": "detached_head", "n_epochs": 1}
    common["policy_kwargs"] = {"entropy_grad": True}
    common["optimizer_class"] = torch.optim.SGD  # Adam would make whole steps of what rounding leaves of a zero
    added = quiet(make_algorithm("distracted", distraction=0.5, kl_in="loss", **common))
    bonus = quiet(make_algorithm("ppo", ent_coef=0.5, kl_in="loss", **common))
    without = quiet(make_algorithm("ppo", kl_in="loss", **common))
    assert (type(added), type(bonus)) == (Distracted, TextPPO)
    for model in (added, bonus, without):
        model.set_random_seed(3)
        model.learn(8 * 6)
    weights = [torch.cat([p.detach().flatten() for p in m.policy.parameters()]) for m in (added, bonus, without)]
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=1e-7)
    assert (weights[1] - weights[2]).abs().max() > 2e-5
    logs = added.logger.name_to_value
    assert logs["train/distraction_loss"] == pytest.approx(logs["train/entropy_loss"])
    with pytest.raises(
        ValueError, match="distraction_loss has no gradient"
    ):  # the entropy is computed without one by default
        quiet(make_algorithm("distracted", **{**common, "policy_kwargs": {}})).learn(8 * 6)


def test_stock_ppo_stays_where_its_loss_is_the_loss() -> None:
    for name in ("ppo", "rloo", "remax", "reinforce_pp"):
        assert type(make_algorithm(name, n_envs=4, env_kwargs=SMALL)) is PPO
    for name, settings in (
        ("ppo", {"kl_in": "loss"}),
        ("rloo", {"clip_range_high": 0.3}),
        ("grpo", {}),
        ("dr_grpo", {}),
    ):
        assert type(make_algorithm(name, n_envs=4, env_kwargs=SMALL, **settings)) is TextPPO  # type: ignore[arg-type]


def test_grpo_has_k3_in_the_loss_and_the_score_alone_in_the_reward() -> None:
    model = make_algorithm("grpo", n_envs=4, env_kwargs=SMALL)
    assert model.rollout_buffer.task.kl == KLPenalty(0.05, "k3", "loss")  # type: ignore[attr-defined]
    model = make_algorithm("grpo", n_envs=4, env_kwargs={**SMALL, "kl_estimator": "k1", "kl_in": None})
    assert model.rollout_buffer.task.kl.estimator == "k3"  # type: ignore[attr-defined]  # as a run of before has it
    model = make_algorithm("grpo", n_envs=4, env_kwargs=SMALL, kl_in="reward")
    assert model.rollout_buffer.task.kl == KLPenalty(0.05, "k1", "reward")  # type: ignore[attr-defined]


def test_a_group_shares_its_prompt_and_advantages_are_within_it() -> None:
    model = make_algorithm("dr_grpo", n_envs=8, group_size=4, seed=0, env_kwargs=SMALL, learning_rate=0.0)
    model.learn(8 * 6)
    segments = model.rollout_buffer.segments  # type: ignore[attr-defined]
    assert len(segments) == 8
    groups: dict[int, list[Any]] = {}
    for segment in segments:
        groups.setdefault(segment.group, []).append(segment)
    assert [len(members) for members in groups.values()] == [4, 4]
    assert len({tuple(members[0].context) for members in groups.values()}) == 2
    offsets = np.cumsum([0, *(len(s.actions) for s in segments)])
    advantages = model.rollout_buffer.advantages
    for members in groups.values():
        assert len({tuple(m.context) for m in members}) == 1
        scores = [m.episode.final_score for m in members]
        for member in members:
            i = segments.index(member)
            own = advantages[offsets[i] : offsets[i + 1]]
            # at learning rate 0 the actor is the reference: the KL part of the score is 0
            np.testing.assert_allclose(own, member.episode.final_score - np.mean(scores), atol=1e-4)


def test_the_kl_in_the_loss_pulls_back_to_the_reference() -> None:
    def distance(kl_coef: float) -> float:
        model = quiet(
            make_algorithm(
                "grpo", n_envs=32, group_size=4, seed=0, learning_rate=5e-4, env_kwargs={**SMALL, "kl_coef": kl_coef}
            )
        )
        callback = TextMetricsCallback()
        model.learn(32 * 6 * 8, callback=callback, log_interval=None)
        rewards = model.rollout_buffer.rewards
        assert np.count_nonzero(rewards) <= 32  # only scores: no KL in the reward
        return float(callback.last["rollout/kl"])

    free, bound = distance(0.0), distance(2.0)
    assert bound < 0.5 * free


def test_clip_higher_lets_ratios_rise_further() -> None:
    def fraction(high: float | None) -> float:
        model = quiet(
            make_algorithm("grpo", n_envs=16, seed=0, env_kwargs=SMALL, learning_rate=3e-3, clip_range_high=high)
        )
        model.learn(16 * 6)
        return float(model.logger.name_to_value["train/clip_fraction"])

    assert fraction(5.0) < fraction(None)


FLAT_AND_LIVELY = "tests.agents.algorithms.test_text_ppo:flat_and_lively"


def flat_and_lively(prompts: list[str], responses: list[str]) -> list[float]:
    """No spread for prompts with a question mark."""
    return [0.0 if "?" in p else float(len(r)) for p, r in zip(prompts, responses, strict=True)]


def test_dynamic_sampling_drops_flat_groups_and_collects_more() -> None:
    model = quiet(
        make_algorithm(
            "grpo", n_envs=8, group_size=2, seed=0, max_resamples=6, batch_size=64,
            env_kwargs={
                **SMALL, "reward_model": FLAT_AND_LIVELY, "prompts": ["Is it?", "Was it?", "We were there."],
            },
        )
    )  # fmt: skip
    callback = TextMetricsCallback()
    model.learn(1, callback=callback, log_interval=None)
    buffer = model.rollout_buffer
    assert all("?" not in s.episode.prompt.text for s in buffer.segments)
    assert 1 <= len({s.group for s in buffer.segments}) <= 4
    assert callback.iteration == 1  # to callbacks, one rollout
    assert model.num_timesteps > 8 * 6
    assert text_env(model.env).generated_tokens == callback.tokens


def test_a_rollout_without_any_spread_is_kept_as_it_is() -> None:
    model = quiet(
        make_algorithm(
            "grpo", n_envs=4, group_size=2, seed=0, max_resamples=1, batch_size=64,
            env_kwargs={**SMALL, "reward_model": FLAT_AND_LIVELY, "prompts": ["Is it?"]},
        )
    )  # fmt: skip
    model.learn(1)
    assert (model.rollout_buffer.advantages == 0).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss_aggregation": "mean"}, "loss_aggregation='mean' is not known"),
        ({"clip_range_high": 0.0}, "clip_range_high=0.0 must be a finite number above 0"),
        ({"max_resamples": -1}, "max_resamples=-1 must be a whole number, at least 0"),
        ({"group_size": 3}, "n_envs=4 must be a multiple of group_size=3"),
        ({"group_size": 1}, "group_size must be at least 2"),
        ({"episodes": "continuous"}, "needs episodes='synchronous'"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_algorithm("grpo", n_envs=4, env_kwargs=SMALL, **settings)


def test_a_saved_model_goes_on(tmp_path: Any) -> None:
    model = make_algorithm("grpo", n_envs=4, group_size=2, seed=0, env_kwargs=SMALL, clip_range_high=0.3)
    model.learn(4 * 6)
    model.save(tmp_path / "m")
    again = TextPPO.load(tmp_path / "m", env=model.env)
    assert (again.clip_range_high, again.loss_aggregation) == (0.3, "sequence")
    with pytest.raises(RuntimeError, match=r"not bound to an environment. Call model.rollout_buffer.bind"):
        again.learn(4 * 6)
    again.rollout_buffer.bind(again.policy, again.env)
    again.learn(4 * 6)
