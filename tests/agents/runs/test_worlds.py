"""Runs with a world: resumed, saved, refused, and told in one line where the world fails."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from agents import load_algorithm, make_algorithm
from agents.cli import evaluate_actor, train
from agents.runs.checkpoint import load_checkpoint, save_checkpoint
from tests.worlds import Echo

RUN = [
    *("--world", "tests.worlds:echo", "--world-kwargs", "turns=3", "--max-turn-tokens", "3", "--max-new-tokens", "9"),
    *("--max-prompt-length", "12", "--n-envs", "4", "--critic", "head", "--n-samples", "2", "--n-eval", "4"),
]


@pytest.mark.parametrize(("episodes", "lag"), [("synchronous", 0), ("synchronous", 3), ("continuous", 0)])
def test_a_resumed_run_equals_an_uninterrupted_one(episodes: str, lag: int, tmp_path: Path) -> None:
    """Invariant 7: in continuous episodes a checkpoint stands between the turns of a conversation."""

    def fresh() -> Any:
        env = {"max_new_tokens": 9, "max_turn_tokens": 3, "max_prompt_length": 12, "world_lag": lag, "max_turns": 3}
        cut = {"n_steps": 7, "batch_size": 28} if episodes == "continuous" else {}
        return make_algorithm(
            "ppo", n_envs=4, episodes=episodes, critic="head", seed=0, n_epochs=1, learning_rate=1e-3,
            env_kwargs={**env, "world": lambda: Echo(3)}, **cut,
        )  # fmt: skip

    half = fresh()
    rollout = half.n_steps * 4
    saved: list[Path] = []
    collect = half.collect_rollouts

    def save_once(*args: Any, **kwargs: Any) -> Any:
        if not saved and half.num_timesteps == 2 * rollout:
            middle = [e for e in half.env.batch.episodes if e is not None and e.turns]
            assert bool(middle) == (episodes == "continuous")
            saved.append(save_checkpoint(half, tmp_path))
        return collect(*args, **kwargs)

    half.collect_rollouts = save_once
    half.learn(4 * rollout, log_interval=None)
    again = fresh()
    load_checkpoint(again, saved[0])
    again.learn(2 * rollout, reset_num_timesteps=False, log_interval=None)
    want = half.policy.state_dict()
    assert all(torch.equal(p, want[name]) for name, p in again.policy.state_dict().items())
    ids = [[e.ids for e in model.env.batch.episodes if e is not None] for model in (half, again)]
    assert ids[0] == ids[1]


def test_a_run_keeps_its_turns(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert train.main([*RUN, "--output-dir", str(folder), "--total-timesteps", "72", "--eval-every", "1"]) == 0
    rows = list(csv.DictReader((folder / "progress.csv").read_text().splitlines()))
    assert [float(row["rollout/end/world"]) for row in rows] == [1.0, 1.0]
    assert [float(row["rollout/turns"]) for row in rows] == [3.0, 3.0]
    assert float(rows[-1]["eval/rm_score"]) == 6.0
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert all(len(s["turns"]) == 3 and s["end"] == "world" and "Heard" in s["turns"][0]["answer"] for s in samples)
    assert evaluate_actor.run(evaluate_actor.Args(folder / "actor", n_prompts=3)) == 0
    assert json.loads((folder / "evaluation.json").read_text())["rm_score"]["mean"] == 6.0


class Tired(Echo):
    """Gives up after some turns, counted over all slots."""

    left = 0

    def step(self, text: str) -> Any:
        Tired.left -= 1
        if Tired.left < 0:
            raise RuntimeError("no more")
        return super().step(text)


@pytest.mark.parametrize("errors", ["raise", "end"])
def test_a_world_that_fails_ends_the_run_in_one_line_or_the_episode(
    errors: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tired, "left", 20)
    folder = tmp_path / "run"
    arguments = [word.replace("tests.worlds:echo", f"{__name__}:Tired") for word in RUN]
    status = train.main([*arguments, "--world-errors", errors, "--output-dir", str(folder), "--total-timesteps", "72"])
    said = capfd.readouterr().err.splitlines()
    if errors == "end":
        assert status == 0
        rows = list(csv.DictReader((folder / "progress.csv").read_text().splitlines()))
        assert float(rows[-1]["rollout/end/world_error"]) == 1.0
    else:
        assert status == 1
        assert [line for line in said if line.startswith("error: ")] == said
        assert len(said) == 1
        assert "raised RuntimeError: no more" in said[0]
        assert "world_errors='end'" in said[0]


def test_ars_searches_in_worlds() -> None:
    model = make_algorithm(
        "ars", n_envs=4, n_delta=1, env_kwargs={"world": Echo, "max_new_tokens": 6, "max_turn_tokens": 3}, seed=0
    )
    model.learn(2 * 4 * 6)
    assert torch.isfinite(model.weights).all()


def test_a_saved_algorithm_with_a_world_is_not_made_again_by_itself(tmp_path: Path) -> None:
    env = {"world": "tests.worlds:echo", "max_new_tokens": 6, "max_turn_tokens": 3}
    model = make_algorithm("ppo", n_envs=2, env_kwargs=env, critic="head", seed=0)
    model.save(tmp_path / "model.zip")
    with pytest.raises(ValueError, match="names a world"):
        load_algorithm(tmp_path / "model.zip")
    again = load_algorithm(tmp_path / "model.zip", model.env)
    assert again.n_envs == 2
