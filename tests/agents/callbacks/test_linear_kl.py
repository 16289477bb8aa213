"""β moves in a straight line, and a resumed run goes on where it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from agents import LinearKL, TextMetricsCallback, TrainingRun, make_algorithm
from agents.rollouts.vec_env import text_env
from agents.runs.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint
from agents.runs.figure import read_progress
from agents.runs.settings import FolderSettings, RunSettings, TaskOptions, TrainingSettings
from tests.agents.small_runs import SMALL, made, trained

ROLLOUT = 8 * 6


class Look(TextMetricsCallback):
    """Keeps the β that each rollout is paid with."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[float] = []

    def _on_rollout_end(self) -> None:
        super()._on_rollout_end()
        self.seen.append(text_env(self.training_env).task.kl.coef)


@pytest.mark.parametrize(("start", "end"), [(0.4, 0.0), (0.0, 0.2)])
def test_each_rollout_is_paid_with_its_part_of_the_way(start: float, end: float) -> None:
    look = Look()
    trained(4, [look, LinearKL(start, end)])
    np.testing.assert_allclose(look.seen, [start + share * (end - start) for share in (0, 0.25, 0.5, 0.75)])


def test_the_penalty_is_the_moved_one() -> None:
    """Score less return is β times the KL: of the second of two rollouts with half of the first one's β."""
    metrics = TextMetricsCallback()
    model = make_algorithm("ppo", n_envs=8, seed=0, env_kwargs={**SMALL, "kl_coef": 0.8})
    with torch.no_grad():
        for parameter in model.policy.actor.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    paid: list[float] = []

    def after_iteration() -> None:
        returns = np.mean([info["r"] for info in list(model.ep_info_buffer or [])[-8:]])
        paid.append(float(metrics.last["rollout/rm_score"] - returns) / metrics.last["rollout/kl"])

    metrics.after_iteration = after_iteration  # type: ignore[method-assign]
    model.learn(2 * ROLLOUT, callback=[metrics, LinearKL(0.8, 0.0)], log_interval=None)
    np.testing.assert_allclose(paid, [0.8, 0.4], rtol=1e-4)


def test_a_resumed_run_has_the_betas_of_an_uninterrupted_one(tmp_path: Path) -> None:
    class Keep(Look):
        def after_iteration(self) -> None:
            if self.iteration == 2:
                save_checkpoint(self.model, tmp_path, {})

    whole, rest = Keep(), Look()
    trained(4, [whole, LinearKL(0.2, 0.1)])
    model = made()
    load_checkpoint(model, list_checkpoints(tmp_path)[0])
    model.learn(2 * ROLLOUT, callback=[rest, LinearKL(0.2, 0.1)], reset_num_timesteps=False, log_interval=None)
    assert whole.seen[2:] == rest.seen == pytest.approx([0.15, 0.125])


def test_a_run_moves_beta_as_its_setting_says(tmp_path: Path) -> None:
    task = TaskOptions(max_new_tokens=6, max_prompt_length=12, kl_coef=0.2)
    training = TrainingSettings(n_envs=8, total_timesteps=2 * ROLLOUT, kl_coef_end=0.1)
    settings = RunSettings(task=task, training=training, folder=FolderSettings(n_samples=0))
    TrainingRun(settings, tmp_path / "run", Console(quiet=True)).train()
    np.testing.assert_allclose(read_progress(tmp_path / "run" / "progress.csv")["train/kl_coef"], [0.2, 0.15])
