"""A reference that follows the policy, and who has to notice."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback

from agents import TextMetricsCallback
from agents.callbacks.reference_refresh import ReferenceRefresh
from agents.rollouts.vec_env import LLMTextVecEnv, text_env
from llm_env.default_task import DEFAULT_MODEL
from llm_env.lm.causal_lm import load_causal_lm
from llm_env.lm.names import LoadSettings
from llm_env.lm.registry import shared_causal_lm
from llm_env.settings import TaskSettings
from llm_env.task import TextTask
from tests.agents.small_runs import SMALL, trained, weights_of


@pytest.mark.parametrize("lora", [0, 4])
def test_a_hard_refresh_brings_the_kl_to_zero_and_touches_no_shared_model(lora: int) -> None:
    before = weights_of(shared_causal_lm(DEFAULT_MODEL, LoadSettings("float32", "cpu")).lm.model).clone()
    rows: list[float] = []

    class Look(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            rows.append(metrics.last["rollout/kl"])

    metrics = TextMetricsCallback()
    model = trained(
        6,
        [metrics, Look(), ReferenceRefresh(3)],
        learning_rate=lambda _: 5e-3 if lora else 1e-3,
        lora_rank=lora,
        critic="detached_head",
    )
    assert rows[0] == pytest.approx(0, abs=1e-3)
    assert max(map(abs, rows[1:3])) > 1e-2
    assert rows[3] == pytest.approx(0, abs=1e-3)  # refreshed before the fourth rollout
    assert max(map(abs, rows[4:])) > 1e-2
    task = text_env(model.env).task
    assert task.reference.shared is not task.model
    if not lora:
        shared = shared_causal_lm(DEFAULT_MODEL, LoadSettings("float32", "cpu")).lm.model
        assert torch.equal(weights_of(shared), before)


def test_a_moving_average_goes_part_of_the_way() -> None:
    task = TextTask(TaskSettings())
    first = weights_of(load_causal_lm(DEFAULT_MODEL, LoadSettings("float32", "cpu")).model)
    other = load_causal_lm(DEFAULT_MODEL, LoadSettings("float32", "cpu")).model
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    task.refresh_reference(other, 0.25)
    own = weights_of(task.own_reference())
    torch.testing.assert_close(own, first + 0.25)
    task.refresh_reference(other, 0.25)
    torch.testing.assert_close(weights_of(task.own_reference()), first + 0.25 + 0.25 * 0.75)
    with pytest.raises(ValueError, match="share=0"):
        task.refresh_reference(other, 0)


def test_step_scoring_notices_a_refresh() -> None:
    venv = LLMTextVecEnv(2, **SMALL)
    venv.seed(0)
    venv.reset()
    venv.step(np.array([5, 6]))
    other = load_causal_lm(DEFAULT_MODEL, LoadSettings("float32", "cpu")).model
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
    venv.task.refresh_reference(other)
    _, rewards, _, _ = venv.step(np.array([7, 8]))
    episode = venv.batch.episodes[0]
    want = venv.task.reference.log_probs([episode.ids], [len(episode.prompt.ids) + 1])[0][0]
    assert rewards[0] == pytest.approx(0.05 * float(want), abs=1e-4)
