"""Other people's tools on `LLMText-v0`, unmodified; each is skipped where it is not installed."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llm_env  # noqa: F401
from tests.conftest import ROOT

EXAMPLE = ROOT / "examples" / "ppo_single_file.py"


def example_scores(capsys: pytest.CaptureFixture[str], **arguments: Any) -> list[float]:
    """What the single-file example prints as each update's score."""
    namespace: dict[str, Any] = {"__name__": "example"}
    sys.modules["example"] = type(sys)("example")  # dataclasses look their module up
    exec(compile(EXAMPLE.read_text(encoding="utf-8"), EXAMPLE.name, "exec"), namespace)
    namespace["main"](namespace["Args"](**arguments))
    printed = capsys.readouterr().out.splitlines()
    return [float(line.split("score")[1].split()[0]) for line in printed if "score" in line]


def test_the_single_file_example_runs_and_is_short(capsys: pytest.CaptureFixture[str]) -> None:
    source = EXAMPLE.read_text(encoding="utf-8")
    assert len(source.splitlines()) < 150
    assert "stable_baselines3" not in source.partition('"""\n\nimport')[2]
    assert len(example_scores(capsys, total_timesteps=128, num_envs=4, num_steps=32)) == 1


@pytest.mark.slow
def test_the_single_file_example_learns(capsys: pytest.CaptureFixture[str]) -> None:
    scores = example_scores(capsys, total_timesteps=4096, num_envs=32, num_steps=32, learning_rate=1e-3)
    assert len(scores) == 4
    assert scores[-1] > scores[0] + 0.3


@pytest.mark.slow
def test_rl_zoo_trains_enjoys_and_plots(tmp_path: Path) -> None:
    pytest.importorskip("rl_zoo3", reason="pip install 'rl_zoo3[plots]' requests")

    def zoo(module: str, *arguments: str) -> str:
        command = [sys.executable, "-m", module, "--algo", "ppo", "--env", "LLMText-v0", *arguments]
        environment = {**os.environ, "MPLBACKEND": "agg"}
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    packages = ["--gym-packages", "llm_env"]
    config = ["-conf", "scripts/configs/rl_zoo.py", "-f", str(tmp_path), "-n", "1024", "--eval-freq", "-1"]
    trained = zoo("rl_zoo3.train", *packages, *config)
    assert "Saving to" in trained
    assert "ep_rew_mean" in trained
    played = zoo("rl_zoo3.enjoy", *packages, "-f", str(tmp_path), "--no-render", "-n", "100")
    assert "Mean reward" in played
    pytest.importorskip("seaborn", reason="pip install 'rl_zoo3[plots]'")
    assert (tmp_path / "ppo" / "LLMText-v0_1" / "0.monitor.csv").is_file()
    zoo("rl_zoo3.plots.plot_train", "-f", str(tmp_path))


def test_torchrl_collects() -> None:
    pytest.importorskip("torchrl", reason="pip install torchrl")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchrl.envs import GymEnv
        from torchrl.envs.utils import check_env_specs

        env = GymEnv("LLMText-v0", max_new_tokens=6, max_prompt_length=12)
        check_env_specs(env)
        env.set_seed(0)
        rollout = env.rollout(30, break_when_any_done=False)
    assert rollout["input_ids"].shape == (30, 18)
    done = rollout["next", "terminated"].flatten().numpy()
    assert 4 <= done.sum() <= 30
    rewards = rollout["next", "reward"].flatten().numpy()
    assert np.isfinite(rewards).all()
    lengths = rollout["length"].flatten().numpy()
    assert (np.diff(lengths)[~done[:-1]] == 1).all()  # a token a step, and a fresh prompt after the end
