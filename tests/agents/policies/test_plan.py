"""Planned rollouts: written ahead or step by step, a rollout is the same, and a plan is dropped where it does not fit."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback

from agents import make_algorithm
from agents.algorithms.table import ALGORITHMS
from agents.policies.plan import Plan
from agents.rollouts.vec_env import LLMTextVecEnv
from tests.worlds import Echo

SMALL: dict[str, Any] = {"max_new_tokens": 12, "max_prompt_length": 12}
WORLD: dict[str, Any] = {**SMALL, "world": lambda: Echo(2), "max_turn_tokens": 5}
WRITERS = [name for name, row in ALGORITHMS.items() if row.rollouts]
MASKS = {"min_new_tokens": 4, "forbidden_tokens": (" the",)}


class Kept(BaseCallback):
    """Keeps each rollout's columns, and counts what was taken from plans."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.rollouts: list[dict[str, np.ndarray]] = []
        self.taken = self.calls = 0
        take = Plan.take

        def counted(plan: Plan, *args: Any) -> Any:
            step = take(plan, *args)
            self.taken += step is not None
            return step

        monkeypatch.setattr(Plan, "take", counted)

    def _on_step(self) -> bool:
        self.calls += 1
        return True

    def _on_rollout_end(self) -> None:
        buffer = self.model.rollout_buffer  # type: ignore[attr-defined]
        names = ("actions", "log_probs", "values", "rewards", "advantages", "returns")
        self.rollouts.append({name: getattr(buffer, name).copy() for name in names})


def trained(
    name: str, planned: bool, monkeypatch: pytest.MonkeyPatch, rollouts: int = 2, callback: Any = None, **settings: Any
) -> tuple[Kept, dict[str, torch.Tensor]]:
    """The rollouts of a training, and the weights that it ends with."""
    env = {**SMALL, **settings.pop("env", {})}
    settings = {"n_envs": 6, **({"group_size": 3} if "group_size" in ALGORITHMS[name].defaults else {}), **settings}
    model = make_algorithm(name, env_kwargs=env, seed=3, planned=planned, **settings)
    with monkeypatch.context() as patch:
        kept = Kept(patch)
        steps = model.n_steps * model.n_envs * rollouts  # type: ignore[attr-defined]
        model.learn(steps, callback=[kept, *([callback(model)] if callback else [])], log_interval=None)
    return kept, {key: value.clone() for key, value in model.policy.state_dict().items()}


def assert_same(name: str, monkeypatch: pytest.MonkeyPatch, least: float, **settings: Any) -> None:
    """Planned and stepped give the same, and at least a share of the planned one's steps were written ahead."""
    planned, weights = trained(name, True, monkeypatch, **settings)
    stepped, stepped_weights = trained(name, False, monkeypatch, **settings)
    assert stepped.taken == 0
    assert planned.taken >= least * planned.calls
    assert len(planned.rollouts) == len(stepped.rollouts) == settings.get("rollouts", 2)
    for one, other in zip(planned.rollouts, stepped.rollouts, strict=True):
        np.testing.assert_array_equal(one["actions"], other["actions"])
        for column, values in one.items():
            np.testing.assert_array_equal(values, other[column], err_msg=column)
    for key, value in weights.items():
        assert torch.equal(value, stepped_weights[key]), key


FAST = {("ppo", True, "no"), ("ppo", False, "bf16"), ("maskable_ppo", True, "no")}
"""The combinations that the fast tests have."""


@pytest.mark.parametrize(
    ("name", "turns", "precision"),
    [
        pytest.param(*chosen, marks=() if chosen in FAST else pytest.mark.slow, id="-".join(map(str, chosen)))
        for chosen in itertools.product(WRITERS, (False, True), ("no", "bf16"))
        if not (chosen[1] and ALGORITHMS[chosen[0]].no.get("worlds"))
        and not (chosen[2] == "bf16" and ALGORITHMS[chosen[0]].no.get("bf16"))
    ],
)
def test_planned_and_stepped_rollouts_are_the_same(
    name: str, turns: bool, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same tokens, log-probs, values, rewards and update, seed for seed."""
    env = dict(WORLD) if turns else {}
    if name == "maskable_ppo":
        env.update(MASKS)
    # Where a world answers, a plan ends with the first turn that does.
    assert_same(name, monkeypatch, 0.3, env=env, mixed_precision=precision)


@pytest.mark.slow
@pytest.mark.parametrize("critic", ["head", "detached_head", "actor", "reward_model", "top_layers"])
def test_with_each_critic(critic: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_same("ppo", monkeypatch, 0.9, critic=critic)


@pytest.mark.slow
def test_with_adapters(monkeypatch: pytest.MonkeyPatch) -> None:
    assert_same("ppo", monkeypatch, 0.9, lora_rank=4, mixed_precision="bf16")


@pytest.mark.slow
def test_without_a_cache_nothing_is_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    kept, _ = trained("ppo", True, monkeypatch, rollouts=1, use_cache=False)
    assert kept.taken == 0


@pytest.mark.parametrize("turns", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["one turn", "turns"])
def test_continuous_episodes_and_rollouts_that_end_in_the_middle(turns: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan never reaches beyond its rollout: what comes after is written by other weights."""
    env = WORLD if turns else {}
    assert_same("ppo", monkeypatch, 0.3, rollouts=3, episodes="continuous", n_steps=17, env=env, batch_size=40)


def test_worlds_that_are_waited_for_later(monkeypatch: pytest.MonkeyPatch) -> None:
    assert_same("ppo", monkeypatch, 0.1, env={**WORLD, "world_lag": 2})


def test_masks_that_look_at_a_model_are_asked_for_at_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    kept, _ = trained("maskable_ppo", True, monkeypatch, env={"top_p": 0.9, **MASKS})
    assert kept.taken == 0


def test_stop_strings_are_looked_for_at_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    kept, _ = trained("ppo", True, monkeypatch, rollouts=1, env={"stop_strings": (".",)})
    assert kept.taken == 0


class Meddles(BaseCallback):
    """Asks the policy about other texts in the middle of a rollout, and about the rollout's own once more."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.other = LLMTextVecEnv(3, **SMALL)
        self.asked = model

    def _on_step(self) -> bool:
        policy = self.asked.policy
        if self.n_calls % 5 == 0:
            with torch.no_grad():
                obs, _ = policy.obs_to_tensor(self.other.reset())
                policy(obs)
                policy.predict(self.other.batch.observation(), deterministic=True)
        return True


def evaluates(model: Any) -> EvalCallback:
    return EvalCallback(LLMTextVecEnv(2, **SMALL), eval_freq=5, n_eval_episodes=3, verbose=0, warn=False)


@pytest.mark.parametrize(
    ("meddler", "episodes"),
    [
        (Meddles, "continuous"),
        (evaluates, "synchronous"),
        pytest.param(Meddles, "synchronous", marks=pytest.mark.slow),
        pytest.param(evaluates, "continuous", marks=pytest.mark.slow),
    ],
)
def test_other_questions_in_the_middle_of_a_rollout(
    meddler: Any, episodes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At learning rate 0 the ratio is 1: each stored log-prob is the policy's, of the token and the text that it stands for."""
    model = make_algorithm("ppo", env_kwargs=SMALL, n_envs=4, seed=0, learning_rate=0.0, episodes=episodes)
    kept = Kept(monkeypatch)
    model.learn(4 * 12 * 3, callback=[kept, meddler(model)], log_interval=None)
    assert kept.taken > 0
    assert model.logger.name_to_value["train/approx_kl"] == pytest.approx(0, abs=1e-6)
    for segment in model.rollout_buffer.segments:  # type: ignore[attr-defined]
        assert segment.episode.response_ids[segment.start :] == segment.actions


def test_a_plan_is_dropped_where_an_observation_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_algorithm("ppo", env_kwargs=SMALL, n_envs=2, seed=0)
    model._setup_learn(10_000)  # type: ignore[attr-defined]
    model.rollout_buffer.reset()  # type: ignore[attr-defined]
    policy, venv = model.policy, model.env
    planner: Any = policy._planner
    obs, _ = policy.obs_to_tensor(model._last_obs)  # type: ignore[arg-type]
    with torch.no_grad():
        policy(obs)
        plan = planner._plan
        assert plan.at == 1
        assert len(plan.written.actions) > 3
        # The same state again is another question: a new plan, from the first step on.
        again, _, _ = policy(obs)
        assert planner._plan is not plan
        plan = planner._plan
        assert again.tolist() == plan.written.actions[0].tolist()
        # Another token than the one that was handed out: somebody else acted.
        taken = again.cpu().numpy()
        taken = (np.asarray(taken) + 1) % 500 + 300
        venv.step(taken)  # type: ignore[union-attr]
        obs, _ = policy.obs_to_tensor(venv.unwrapped.batch.observation())  # type: ignore[union-attr]
        policy(obs)
        assert planner._plan is not plan
        # The likeliest token is no business of a plan; new weights end it.
        plan = planner._plan
        policy(obs, deterministic=True)
        assert planner._plan is plan
        policy.set_training_mode(True)
        assert planner._plan is None


def test_nothing_is_planned_outside_a_rollout() -> None:
    model = make_algorithm("ppo", env_kwargs=SMALL, n_envs=2, seed=0)
    policy: Any = model.policy
    with torch.no_grad():
        policy(policy.obs_to_tensor(model.env.reset())[0])  # type: ignore[union-attr]
    assert policy._planner._plan is None
