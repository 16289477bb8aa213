"""What a run ends with when its gold score has fallen: the actor of before the fall, also where the run was interrupted."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor

from agents import BestGold, TextMetricsCallback
from agents.callbacks.drift import Numbers
from agents.cli import train
from agents.runs.ending import Ending, Kept, read_ending
from agents.runs.figure import read_progress
from agents.runs.held_out import HeldOutPrompts
from agents.runs.report.data import read_run
from agents.runs.run import RunCallback
from tests.agents.small_runs import made, trained

FALLS = [0.0, 1.0, 2.0, 3.0, 4.0, 3.0, -5.0, -5.0, -5.0, -5.0]
"""Gold scores of rollouts; the best four are 2, 3, 4, 3, and the alarm comes with the eighth."""
ROLLOUT = 8 * 4
"""Steps of a run's iteration."""


class Script:
    """A gold function that gives each rollout in turn the next score."""

    def __init__(self, scores: list[float]) -> None:
        self.scores = scores
        self.calls = 0

    def __call__(self, prompts: list[str], responses: list[str]) -> list[float]:
        self.calls += 1
        return [self.scores[self.calls - 1]] * len(responses)


class Writers(BaseCallback):
    """Notes the weights that wrote each rollout."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[dict[str, Tensor]] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        self.weights.append({name: t.clone() for name, t in self.model.policy.state_dict().items()})


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("settings", [{}, {"lora_rank": 2}], ids=["all weights", "adapters"])
def test_what_is_kept_wrote_the_last_of_the_best_rollouts(settings: dict[str, Any]) -> None:
    metrics, writers = TextMetricsCallback(gold=Script(FALLS)), Writers()
    best = BestGold(metrics)
    model = trained(8, [metrics, best, writers], **settings)
    assert best.kept == (5, 5 * 8 * 6, 3.0)
    last = {name: t.clone() for name, t in model.policy.state_dict().items()}
    assert not same(last, writers.weights[5])
    assert not same(writers.weights[4], writers.weights[5])
    best.restore()
    assert same(model.policy.state_dict(), writers.weights[5])
    assert best.weights.keys() == last.keys()  # with adapters they are few


def test_what_is_kept_is_a_copy() -> None:
    metrics = TextMetricsCallback(gold=Script(FALLS))
    best = BestGold(metrics)
    model = trained(6, [metrics, best])
    kept = {name: t.clone() for name, t in best.weights.items()}
    model.learn(2 * 8 * 6, callback=[metrics, best], log_interval=None, reset_num_timesteps=False)
    assert same(best.weights, kept)


@pytest.mark.parametrize("gold", [None, Script(FALLS)], ids=["no gold", "three rollouts"])
def test_nothing_is_kept_before_a_gold_score_is_known(gold: Script | None) -> None:
    metrics = TextMetricsCallback(gold=gold)
    best = BestGold(metrics)
    trained(3, [metrics, best])
    assert best.kept is None
    with pytest.raises(RuntimeError, match="No weights are kept"):
        best.restore()


def test_a_resumed_one_keeps_what_it_had() -> None:
    metrics = TextMetricsCallback(gold=Script(FALLS))
    first = BestGold(metrics)
    trained(6, [metrics, first])
    again = BestGold(metrics)
    again.load_state_dict(json.loads(json.dumps(first.state_dict(), allow_nan=False)), first.weights)
    again.init_callback(made())
    again.restore()
    assert again.kept == first.kept
    assert again.state_dict() == first.state_dict()
    assert same(again.model.policy.state_dict(), first.weights)


@pytest.fixture
def gold(monkeypatch: pytest.MonkeyPatch) -> Script:
    """The gold scores of a run whose score rises all the time."""
    script, rising = Script(FALLS), itertools.count()
    monkeypatch.setattr("agents.callbacks.metrics.load_text_reward", lambda *_: Scripted(script))
    monkeypatch.setattr(
        "agents.callbacks.alarms.numbers_of",
        lambda last, _: Numbers(float(next(rising)), last["rollout/gold_score"], 0.01, 0.0, 4.0),
    )
    monkeypatch.setattr(HeldOutPrompts, "evaluate", lambda self, policy, *_: evaluated(policy.state_dict()))
    return script


class Scripted:
    """A script as what reads texts."""

    def __init__(self, script: Script) -> None:
        self.script = script

    def score_texts(self, prompts: list[str], responses: list[str], columns: Any) -> list[float]:
        return self.script(prompts, responses)


def evaluated(weights: dict[str, Tensor]) -> dict[str, float]:
    """An evaluation that differs with the actor's weights."""
    gold = float(sum(t.double().sum() for name, t in weights.items() if name.startswith("actor.")))
    return {"rm_score": 1.0, "kl": 0.0, "objective": 1.0, "gold_score": gold}


def command(folder: Path, *more: str) -> list[str]:
    return [
        *("--output-dir", str(folder), "--gold", "llm_env.default_task.gold:gold_score", "--n-envs", "8"),
        *("--max-new-tokens", "4", "--max-prompt-length", "12", "--n-samples", "2", "--eval-every", "100"),
        *("--total-timesteps", str(10 * ROLLOUT), "--checkpoint-every", "5", "--learning-rate", "1e-3", *more),
    ]


def actor_of(folder: Path) -> dict[str, Tensor]:
    """The weights of an actor that was written to ``actor/``."""
    return load_file(folder / "actor" / "model.safetensors")


def checkpoint(folder: Path, iteration: int) -> dict[str, Tensor]:
    """The policy in a checkpoint."""
    return load_file(folder / "checkpoints" / f"step_{iteration * ROLLOUT:012d}" / "policy.safetensors")


def is_of(actor: dict[str, Tensor], policy: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, policy[f"actor.{name}"]) for name, tensor in actor.items())


def iterations(folder: Path) -> int:
    return len(read_progress(folder / "progress.csv")["train/alarms"])


@pytest.mark.filterwarnings("always::UserWarning")
def test_a_run_that_gold_ends_has_the_actor_of_before_the_fall(
    gold: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert train.main(command(folder)) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert iterations(folder) == 8
    best = checkpoint(folder, 5)
    of_best = evaluated(best)
    assert (
        "note: Ended after iteration 8 by the alarm 'gold' (stop_on): the run ends with the actor of iteration 5"
        in told
    )
    assert f"whose gold score was the best: 3, and {of_best['gold_score']:.3g} on held-out prompts" in told
    # The actor is that one; the last checkpoint is the last iteration's.
    assert is_of(actor_of(folder), best)
    assert not is_of(actor_of(folder), checkpoint(folder, 8))
    assert read_ending(folder / "actor") == Ending("gold", 8, Kept(5, 5 * ROLLOUT, 3.0, of_best))
    assert read_progress(folder / "progress.csv")["eval/gold_score"][-1] == pytest.approx(
        evaluated(checkpoint(folder, 8))["gold_score"]
    )
    # What is said of the actor is about it.
    card = " ".join((folder / "actor" / "README.md").read_text().split())
    assert "Ended after iteration 8 by the alarm 'gold'" in card
    assert "actor of iteration 5" in card
    assert "| gold score, which nobody trains on | 3.00 |" in card  # of the rollout that it wrote
    assert "On held-out prompts, of this actor" in card
    page = read_run(folder)
    assert page["state"] == "stopped"
    assert [moment["iteration"] for moment in page["samples"]] == [0, 5, 8]
    assert page["samples"][1]["records"][0]["response"] in (folder / "actor" / "README.md").read_text()
    assert any("actor of iteration 5" in note for note in page["notes"])

    # The process was killed before it had written everything.
    (folder / "actor" / "model.safetensors").unlink()
    assert train.main(["--resume", str(folder)]) == 0
    assert is_of(actor_of(folder), best)
    assert len((folder / "samples.jsonl").read_text().splitlines()) == 3 * 2

    # Told to go on, it does so from the last iteration, to an actor of its own.
    assert train.main(["--resume", str(folder), "--stop-on", "none"]) == 0
    assert iterations(folder) == 10
    assert is_of(actor_of(folder), checkpoint(folder, 10))
    assert read_ending(folder / "actor") is None
    assert "Ended after" not in (folder / "actor" / "README.md").read_text()
    page = read_run(folder)
    assert page["state"] == "ended"
    assert not any("actor of iteration" in note for note in page["notes"])


@pytest.mark.filterwarnings("always::UserWarning")
def test_a_run_that_was_interrupted_ends_with_the_same_actor(
    gold: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert train.main(command(whole)) == 0
    gold.calls = 0
    after_iteration = RunCallback.after_iteration

    def killed(callback: RunCallback) -> None:
        after_iteration(callback)
        if callback.iteration == 7:
            raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(RunCallback, "after_iteration", killed)
        with pytest.raises(RuntimeError, match="killed"):
            train.main(command(broken, "--checkpoint-every", "6"))
    gold.calls = 6  # the checkpoint's, which has the actor of iteration 6: that of 5 is nowhere else
    assert train.main(["--resume", str(broken)]) == 0
    assert iterations(broken) == 8
    assert same(actor_of(broken), actor_of(whole))
    assert read_ending(broken / "actor") == read_ending(whole / "actor")


@pytest.mark.parametrize(
    ("scores", "more"), [([*FALLS[:6], *[2.9] * 4], ()), (FALLS, ("--stop-on", "none"))], ids=["no fall", "goes on"]
)
@pytest.mark.filterwarnings("always::UserWarning")
def test_a_run_that_is_not_ended_keeps_its_last_actor(
    scores: list[float], more: tuple[str, ...], gold: Script, tmp_path: Path
) -> None:
    gold.scores = scores
    folder = tmp_path / "run"
    assert train.main(command(folder, *more)) == 0
    assert iterations(folder) == 10
    assert is_of(actor_of(folder), checkpoint(folder, 10))
    assert read_ending(folder / "actor") is None
    kept = (folder / "checkpoints" / f"step_{10 * ROLLOUT:012d}" / "extra.safetensors").is_file()
    assert kept == (not more)  # nothing is kept where nothing goes back
