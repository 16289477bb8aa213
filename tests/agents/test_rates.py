"""The learning rate that a model gets by its width, and by whether adapters are trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import agents.rates as rates
from agents import make_algorithm
from agents.algorithms.table import ALGORITHMS
from agents.cli import train, train_preference, train_reward_model, train_sft
from agents.runs.figure import read_progress
from agents.supervised.settings import PreferenceSettings, RewardSettings, SFTSettings
from agents.supervised.trainer import trainer_arguments

SMALL = {"max_new_tokens": 4, "max_prompt_length": 12}


def made(name: str, **settings: Any) -> Any:
    return make_algorithm(name, n_envs=8, env_kwargs=SMALL, device="cpu", **settings)


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedded model counts as four times as wide as the one that the rates are for."""
    monkeypatch.setattr(rates, "WIDTH", 32)


def test_a_wider_model_gets_less_and_adapters_more() -> None:
    assert rates.rate_for(4e-4, 128, False) == 4e-4
    assert rates.rate_for(4e-4, 32, False) == 4e-4
    assert rates.rate_for(4e-4, 1024, False) == pytest.approx(5e-5)
    assert rates.rate_for(4e-4, 1024, True) == pytest.approx(5e-5 * rates.LORA)


@pytest.mark.parametrize("name", ["ppo", "grpo", "dqn", "recurrent_ppo", "ars"])
def test_the_embedded_model_has_the_tables_rate(name: str) -> None:
    assert made(name).learning_rate == ALGORITHMS[name].defaults["learning_rate"]


@pytest.mark.parametrize(
    ("name", "settings", "times"),
    [
        ("ppo", {}, 1 / 4),
        ("ppo", {"lora_rank": 2}, rates.LORA / 4),
        ("grpo", {"policy_kwargs": {"lora_rank": 2}}, rates.LORA / 4),
        ("dqn", {}, 1 / 4),
        ("trpo", {"lora_rank": 2}, 1 / 4),  # its rate is the critic's
        ("recurrent_ppo", {}, 1),  # no language model
        ("ars", {}, 1),
    ],
)
@pytest.mark.usefixtures("wide")
def test_what_a_wide_model_gets(name: str, settings: dict[str, Any], times: float) -> None:
    rate = ALGORITHMS[name].defaults["learning_rate"]
    assert made(name, **settings).learning_rate == pytest.approx(times * rate)
    assert made(name, learning_rate=2e-3, **settings).learning_rate == 2e-3  # the user's


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({"lora_rank": 2, "critic": "reward_model"}, 1 / rates.LORA),
        ({"lora_rank": 2, "critic": "actor", "critic_lr_scale": 0.5}, 0.5),
        ({"lora_rank": 2, "critic": "actor", "learning_rate": 1e-3}, 1.0),
        ({"lora_rank": 2}, 1 / rates.LORA),  # whose default here is the reward model
        ({"lora_rank": 2, "critic": "head"}, 1.0),
        ({"critic": "actor"}, 1.0),
    ],
)
def test_a_network_beside_adapters_has_the_rate_of_all_weights(settings: dict[str, Any], scale: float) -> None:
    assert made("ppo", **settings).policy.settings.critic_lr_scale == scale


@pytest.mark.usefixtures("wide")
def test_a_run_says_what_it_took_and_begins_with_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--n-envs", "4", "--max-new-tokens", "4", "--max-prompt-length", "12", "--total-timesteps", "32"]
    assert train.main(["--output-dir", str(tmp_path / "run"), *command]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "note: learning_rate=7.5e-05, by this model's width (0.0003 is for all weights at a width of 32)." in told
    assert read_progress(tmp_path / "run" / "progress.csv")["train/learning_rate"][0] == pytest.approx(7.5e-5)
    assert train.main(["--output-dir", str(tmp_path / "own"), *command, "--learning-rate", "1e-4"]) == 0
    assert "learning_rate" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kind", "given", "rate"),
    [
        (SFTSettings, "texts", 1e-3),
        (RewardSettings, "preferences", 1e-3),
        (PreferenceSettings, "preferences", 3e-4),
    ],
)
def test_what_a_supervised_stage_takes(kind: Any, given: str, rate: float, tmp_path: Path) -> None:
    def taken(width: int, **settings: Any) -> float:
        return float(
            trainer_arguments(kind(**{given: "x"}, output_dir=tmp_path, **settings), 64, width)["learning_rate"]
        )

    assert taken(128) == rate
    assert taken(1024) == pytest.approx(rate / 8)
    assert taken(1024, lora_rank=2) == pytest.approx(rate * rates.LORA / 8)
    assert taken(1024, lora_rank=2, learning_rate=2e-3) == 2e-3


PAIR = {"prompt": "The waiter", "chosen": " was kind.", "rejected": " was rude."}


@pytest.mark.parametrize(
    ("command", "option", "report", "record", "rate"),
    [
        (train_sft, "texts", "sft.json", {"prompt": "The waiter", "response": " was kind."}, 2.5e-4),
        (train_reward_model, "preferences", "report.json", PAIR, 2.5e-4),
        (train_preference, "preferences", "preference.json", PAIR, 7.5e-5),
    ],
)
@pytest.mark.usefixtures("wide")
def test_a_stage_says_what_it_took_and_trains_with_it(
    command: Any, option: str, report: str, record: dict[str, str], rate: float,
    tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({**record, "prompt": f"{record['prompt']} {i}"}) + "\n" for i in range(16)))
    common = [f"--{option}", str(data), "--device", "cpu", "--lr-schedule", "constant", "--warmup", "0"]
    assert command.main([*common, "--output-dir", str(tmp_path / "stage")]) == 0
    assert f"note: learning_rate={rate:.2g}, by this model's width (" in " ".join(capsys.readouterr().out.split())
    log = json.loads((tmp_path / "stage" / report).read_text())["log"]
    assert {entry["learning_rate"] for entry in log if "learning_rate" in entry} == {rate}
