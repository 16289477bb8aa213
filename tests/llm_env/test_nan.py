"""A model whose logits are NaN writes nothing: sampling says so."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from llm_env.default_task import DEFAULT_MODEL
from llm_env.lm.causal_lm import CausalLM, load_causal_lm
from llm_env.lm.generate import continue_prompts
from llm_env.lm.names import LoadSettings
from llm_env.rollout import respond
from llm_env.settings import task_settings
from llm_env.slots import EpisodeSlots
from llm_env.task import TextTask


@pytest.fixture(scope="module")
def broken() -> CausalLM:
    lm = copy.deepcopy(load_causal_lm(DEFAULT_MODEL, LoadSettings(device="cpu")))
    with torch.no_grad():
        next(lm.model.parameters())[:] = torch.nan
    return lm


@pytest.fixture(scope="module")
def task() -> TextTask:
    return TextTask(task_settings({"max_new_tokens": 3, "max_prompt_length": 12, "device": "cpu"}))


def test_responses_and_plain_continuations_are_refused(broken: CausalLM, task: TextTask) -> None:
    prompts = [task.prompts[i] for i in range(3)]
    with pytest.raises(FloatingPointError, match="logits are NaN"):
        respond(broken, task, prompts, seed=0)
    with pytest.raises(FloatingPointError, match="logits are NaN"):
        continue_prompts(broken, prompts, task.eos_ids, 3, seed=0)


def test_a_step_looks_at_the_slots_that_are_busy_only(task: TextTask) -> None:
    batch = EpisodeSlots(task, 3, score_steps=False)
    batch.begin(0)
    batch.begin(2)
    actions, log_probs = np.array([5, 0, 6]), np.array([-1.0, np.nan, -2.0])
    batch.step(actions, log_probs)
    log_probs[2] = np.nan
    before = batch.observation()["input_ids"].copy()
    with pytest.raises(FloatingPointError, match="logits are NaN"):
        batch.step(actions, log_probs)
    assert np.array_equal(batch.observation()["input_ids"], before)
