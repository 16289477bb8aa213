from __future__ import annotations

import math

import pytest

from agents.algorithms.best_of_n import best_of_n, best_of_n_kl
from llm_env.rollout import respond
from llm_env.settings import TaskSettings
from llm_env.task import TextTask


def test_kl_by_hand() -> None:
    assert best_of_n_kl(1) == 0
    assert best_of_n_kl(4) == pytest.approx(math.log(4) - 0.75)
    with pytest.raises(ValueError, match="n=0 must be at least 1"):
        best_of_n_kl(0)


def test_it_keeps_the_best() -> None:
    task = TextTask(TaskSettings(max_new_tokens=8))
    prompts = task.prompts.spread(12)
    with task.model.frozen() as lm:
        tries = [respond(lm, task, prompts, 5 + 1_000_003 * k) for k in range(3)]
        best = best_of_n(lm, task, prompts, 3, 5)
    for i, episode in enumerate(best):
        assert episode.prompt is prompts[i]
        assert episode.final_score == pytest.approx(max(t[i].final_score or 0.0 for t in tries))
    assert len({tuple(t[0].response_ids) for t in tries}) > 1
