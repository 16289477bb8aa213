"""Turns that an engine wrote: they are what is handed out, scored by the policy itself, and refused where they are none."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback

from agents import LLMActorCriticPolicy, LLMTextVecEnv, TextMetricsCallback, TokenRolloutBuffer, make_algorithm
from agents.algorithms.table import ALGORITHMS
from agents.engines.ahead import Mismatch, as_written
from agents.engines.engine import EngineError, Turn
from llm_env.lm.writer import Outlook
from tests.agents.engines.stand_in import StandIn, any_tokens, stand_in
from tests.worlds import Echo

SMALL: dict[str, Any] = {"max_new_tokens": 12, "max_prompt_length": 12}


def made(name: str = "ppo", env: Any = None, **settings: Any) -> Any:
    settings = {
        "n_envs": 6,
        "seed": 3,
        **({"group_size": 3} if "group_size" in ALGORITHMS[name].defaults else {}),
        **settings,
    }
    return make_algorithm(name, env_kwargs={**SMALL, **(env or {})}, **settings)


def rollouts(model: Any, n: int, callback: BaseCallback | None = None) -> Any:
    """Trains on n rollouts; gives the buffer, with the last one in it."""
    model.learn(model.n_steps * model.n_envs * n, callback=callback, log_interval=None)
    return model.rollout_buffer


def test_the_engines_tokens_are_handed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    engines = stand_in(monkeypatch)
    buffer = rollouts(made(engine="stand_in", env={"temperature": 0.7}), 2)
    (engine,) = engines.made
    assert len(engine.given) == 2, "one call a rollout"
    call = engine.calls[-1]
    assert call["room"] == [12] * 6
    assert call["temperature"] == 0.7
    assert sorted(s.slot for s in buffer.segments) == list(range(6))
    for segment in buffer.segments:
        assert segment.context == call["prompts"][segment.slot]
        assert segment.actions == engine.given[-1][segment.slot].tokens
        assert segment.episode.response_ids == segment.actions


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("ppo", {}),
        ("ppo", {"critic": "head", "mixed_precision": "bf16"}),
        ("ppo", {"lora_rank": 4, "use_cache": False}),
        ("grpo", {}),
        pytest.param("a2c", {}, marks=pytest.mark.slow),
        pytest.param("trpo", {"critic": "actor"}, marks=pytest.mark.slow),
        pytest.param("maskable_ppo", {"critic": "top_layers"}, marks=pytest.mark.slow),
        pytest.param("remax", {"mixed_precision": "bf16"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_the_ratio_is_one_whatever_the_engine_draws_from(
    name: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Invariant 1, with tokens that the policy would hardly ever choose."""
    engines = stand_in(monkeypatch)
    model = made(name, engine="stand_in", learning_rate=0.0, **settings)
    buffer = rollouts(model, 2)
    assert len(engines.made[0].given) == 2
    log = model.logger.name_to_value
    assert log.get("train/approx_kl", 0.0) == pytest.approx(0, abs=1e-9)
    assert log.get("train/clip_fraction", 0.0) == 0
    sequences, places = [s.ids for s in buffer.segments], [s.places for s in buffer.segments]
    log_probs, _ = model.policy.score_segments(sequences, places)
    if model.policy.rescores_log_probs or not model.policy.critic.reads_text:
        np.testing.assert_allclose(buffer.log_probs, log_probs, atol=1e-4)
    assert buffer.log_probs.mean() < -4


class Rows(TextMetricsCallback):
    """Keeps the rows of the log."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, Any]] = []

    def before_row(self) -> None:
        self.rows.append(dict(self.logger.name_to_value))


def replay_of(buffer: Any) -> Callable[..., list[Turn]]:
    """Writes what a buffer holds, which was another run's first rollout, with log-probs that are half a nat too high."""
    turns: list[list[int]] = [[] for _ in buffer.segments]
    log_probs: list[list[float]] = [[] for _ in buffer.segments]
    for segment in buffer.segments:
        turns[segment.slot], log_probs[segment.slot] = list(segment.actions), [x + 0.5 for x in segment.log_probs]

    def write(prompts: Sequence[list[int]], *_: Any) -> list[Turn]:
        assert [s.context for s in sorted(buffer.segments, key=lambda s: s.slot)] == list(prompts)
        return [Turn(t, p) for t, p in zip(turns, log_probs, strict=True)]

    return write


@pytest.mark.parametrize("settings", [{}, {"critic": "actor"}, {"lora_rank": 4, "learning_rate": 3e-4}], ids=str)
def test_the_same_tokens_give_the_same_update(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Through an engine or by the project's own loop: only where tokens come from differs."""
    own = made(**settings)
    before = {k: v.clone() for k, v in own.policy.state_dict().items()}
    buffer = rollouts(own, 1)
    stand_in(monkeypatch, replay_of(buffer))
    through, rows = made(engine="stand_in", **settings), Rows()
    again = rollouts(through, 1, rows)
    np.testing.assert_array_equal(again.actions, buffer.actions)
    for column in ("log_probs", "values", "rewards", "advantages"):
        np.testing.assert_allclose(getattr(again, column), getattr(buffer, column), atol=2e-5, err_msg=column)
    moved = 0.0
    for key, value in own.policy.state_dict().items():
        torch.testing.assert_close(through.policy.state_dict()[key], value, atol=2e-5, rtol=0)
        moved = max(moved, float((value - before[key]).abs().max()))
    assert moved > 2e-4
    # The log says how far the engine's distribution is from the policy's: e^-0.5 - 1 + 0.5.
    assert rows.rows[0]["rollout/engine_kl"] == pytest.approx(math.exp(-0.5) - 0.5, abs=1e-4)
    assert rows.rows[0]["rollout/engine_gap"] == pytest.approx(0.5, abs=1e-4)


def test_no_mismatch_is_logged_of_an_engine_that_gives_no_log_probs(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch)
    rows = Rows()
    rollouts(made(engine="stand_in"), 1, rows)
    assert not [name for name in rows.rows[0] if "engine" in name]


def test_mismatch_by_hand() -> None:
    mismatch = Mismatch()
    mismatch.add(np.log([0.5, 0.2]), np.log([0.25, 0.4]).astype(np.float32))
    # r = 1/2 and 2: r - 1 - log r is -1/2 + log 2 and 1 - log 2, whose mean is 1/4.
    assert mismatch.take() == {
        "rollout/engine_kl": pytest.approx(0.25),
        "rollout/engine_gap": pytest.approx(math.log(2)),
    }
    assert mismatch.take() == {}


@pytest.mark.parametrize("settings", [{}, {"lora_rank": 4}, {"lora_rank": 4, "mixed_precision": "bf16"}], ids=str)
def test_the_engine_gets_the_weights_that_act(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for each update, adapters merged, under the names of the model without adapters."""
    engines = stand_in(monkeypatch)
    model = made(engine="stand_in", learning_rate=1e-3, **settings)
    merged: list[dict[str, torch.Tensor]] = []

    class Before(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_start(self) -> None:
            merged.append({n: p.detach().clone() for n, p in model.policy.merged_actor().named_parameters()})

    rollouts(model, 3, Before())
    (engine,) = engines.made
    assert len(engine.loaded) == 3
    for loaded, expected in zip(engine.loaded, merged, strict=True):
        assert loaded.keys() == expected.keys()
        for name, value in expected.items():
            dtype = torch.bfloat16 if "mixed_precision" in settings else torch.float32
            torch.testing.assert_close(loaded[name].to(dtype), value.to(dtype), atol=1e-6, rtol=1e-2, msg=name)
    assert any(not torch.equal(engine.loaded[0][n], engine.loaded[2][n]) for n in merged[0])


END = 2
"""An end token of the embedded model."""
OTHER = 500


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        (lambda room: [], "gave 0 turns to 6 texts"),
        (lambda room: [Turn([OTHER] * 12)] * 7, "gave 7 turns to 6 texts"),
        (lambda room: [Turn([])] * 6, "text 1 of 6 0 tokens, where there must be 1 to 12"),
        (lambda room: [Turn([OTHER] * 13)] * 6, "13 tokens, where there must be 1 to 12"),
        (lambda room: [Turn([OTHER] * 11 + [1024])] * 6, "1024, which is no token: they are 0 to 1023"),
        (lambda room: [Turn([-1] * 12)] * 6, "-1, which is no token"),
        (lambda room: [Turn([OTHER, END, OTHER, OTHER])] * 6, "2 tokens behind the end token 2"),
        (lambda room: [Turn([OTHER] * 3)] * 6, "3 tokens without an end token, though there is room for 12"),
        (lambda room: [Turn([OTHER] * 12)] * 5 + [Turn([END], [-1.0, -1.0])], "text 6 of 6 2 log-probs for 1 tokens"),
    ],
    ids=[
        "none",
        "too many turns",
        "nothing",
        "too long",
        "no token",
        "negative",
        "behind the end",
        "short",
        "log-probs",
    ],
)
def test_what_is_no_turn_is_refused(turns: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, lambda prompts, room, end_ids, seed: turns(room))
    with pytest.raises(EngineError, match="engine='stand_in' gave") as caught:
        rollouts(made(engine="stand_in"), 1)
    assert message in str(caught.value)


class Meddles(BaseCallback):
    """Asks the policy about the rollout's own text once more, which drops the plan in the middle of it."""

    def _on_step(self) -> bool:
        if self.n_calls % 5 == 0:
            policy: Any = self.model.policy
            policy._planner.drop()
        return True


def test_a_plan_that_is_made_in_the_middle_of_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    engines = stand_in(monkeypatch)
    model = made(engine="stand_in", learning_rate=0.0)
    buffer = rollouts(model, 1, Meddles())
    (engine,) = engines.made
    assert len(engine.calls) == 3
    assert len(engine.loaded) == 1
    assert engine.calls[1]["room"] == [7] * len(engine.calls[1]["prompts"])
    assert model.logger.name_to_value["train/approx_kl"] == pytest.approx(0, abs=1e-9)
    for segment in buffer.segments:
        if len(segment.actions) == 12:
            assert segment.actions[:5] == engine.given[0][segment.slot].tokens[:5]


def test_a_turn_that_is_cut_where_the_outlook_ends_goes_on() -> None:
    """Two of five tokens can be foreseen of the first; the second has ended, the third has no more room; a slot is idle."""
    is_end = torch.zeros(1024, dtype=torch.bool)
    is_end[END] = True
    outlook = Outlook(2, torch.tensor([5, 0, 5, 2]), is_end, goes_on=False)
    turns = [Turn([OTHER, OTHER]), Turn([END]), Turn([OTHER, OTHER])]
    flat = np.arange(5, dtype=np.float32)
    written = as_written([0, 2, 3], turns, outlook, flat, 10 + flat)
    assert written.actions.tolist() == [[OTHER, 0, END, OTHER], [OTHER, 0, 0, OTHER]]
    assert written.acts.tolist() == [[True, False, True, True], [True, False, False, True]]
    assert written.ended.tolist() == [[False, False, True, False], [False, False, False, True]]
    assert written.log_probs.tolist() == [[0, 0, 2, 3], [1, 0, 0, 4]]
    assert written.values.tolist() == [[10, 0, 12, 13], [11, 0, 0, 14]]


def test_two_runs_with_one_seed_are_identical(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch)
    one, other = (rollouts(made(engine="stand_in"), 2) for _ in range(2))
    np.testing.assert_array_equal(one.actions, other.actions)
    np.testing.assert_array_equal(one.returns, other.returns)


@pytest.mark.parametrize(
    ("name", "env", "settings", "message"),
    [
        ("maskable_ppo", {"top_k": 5}, {}, "masks"),
        ("maskable_ppo", {"min_new_tokens": 3}, {}, "masks"),
        ("ppo", {"stop_strings": (".",)}, {}, "stop_strings: an engine ends turns at end tokens alone"),
        ("ppo", {"world": lambda: Echo(2)}, {}, "a world: each turn would begin at another moment"),
        ("ppo", {}, {"episodes": "continuous"}, "episodes='continuous'"),
    ],
    ids=["top-k", "min", "stop strings", "world", "continuous"],
)
def test_what_an_engine_cannot_write_is_refused(
    name: str, env: dict[str, Any], settings: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        pytest.fail("loaded")

    monkeypatch.setattr("agents.algorithms.factory.LLMTextVecEnv", never)
    for given in ({"engine": "transformers"}, {"policy_kwargs": {"engine": "transformers"}}):
        with pytest.raises(ValueError, match="engine='transformers' cannot be used with") as caught:
            made(name, env, **given, **settings)
        assert message in str(caught.value)


def test_an_environment_that_exists_is_looked_at_when_it_is_bound() -> None:
    venv = LLMTextVecEnv(2, episodes="continuous", scoring="deferred", **SMALL)
    model = PPO(
        LLMActorCriticPolicy, venv, n_steps=12, batch_size=24, gamma=1.0, rollout_buffer_class=TokenRolloutBuffer,
        policy_kwargs={"engine": "transformers"},
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"engine='transformers' cannot be used with episodes='continuous'"):
        model.rollout_buffer.bind(model.policy, venv)  # type: ignore[attr-defined]


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from agents.engines.engine import check_fits
    from llm_env.settings import TaskSettings

    check_fits("transformers", TaskSettings(), "synchronous", 1)
    check_fits(None, TaskSettings(top_k=5), "continuous", 2)
    with pytest.raises(ValueError, match="processes=2: engines have been tried in one process only"):
        check_fits("transformers", TaskSettings(), "synchronous", 2)


def test_nobody_is_asked_outside_a_rollout(monkeypatch: pytest.MonkeyPatch) -> None:
    engines = stand_in(monkeypatch)
    model = made(engine="stand_in")
    model.predict(model.get_env().reset())
    assert not engines.made
    assert isinstance(StandIn.write, type(any_tokens))
