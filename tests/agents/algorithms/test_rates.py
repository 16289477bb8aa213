"""The learning rate that a model gets by its width, and by whether adapters are trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import agents.algorithms.rates as rates
from agents import make_algorithm
from agents.algorithms.table import ALGORITHMS
from agents.cli import train
from agents.runs.figure import read_progress

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
        ({"lora_rank": 2}, 1.0),
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
    assert (
        "note: learning_rate=7.5e-05, by this model's width (ppo's is 0.0003 for all weights at a width of 32)." in told
    )
    assert read_progress(tmp_path / "run" / "progress.csv")["train/learning_rate"][0] == pytest.approx(7.5e-5)
    assert train.main(["--output-dir", str(tmp_path / "own"), *command, "--learning-rate", "1e-4"]) == 0
    assert "learning_rate" not in capsys.readouterr().out
