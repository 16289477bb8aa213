from __future__ import annotations

import json
from pathlib import Path

import pytest

from agents.callbacks.constant_scores import ConstantScores
from agents.cli import train
from tests.agents.small_runs import trained
from tests.conftest import count_dots

LINE = "scores of the last 3 rollouts are 0: there is nothing to learn from"


def zero(prompts: list[str], responses: list[str]) -> list[float]:
    """A reward that never fires."""
    return [0.0] * len(responses)


def seen(*rollouts: list[float]) -> list[int]:
    """The rollouts, from 1, after which something was said."""
    constant = ConstantScores()
    return [i for i, scores in enumerate(rollouts, 1) if constant.see(scores) is not None]


def test_it_is_said_once_after_three_rollouts_of_one_score() -> None:
    same, other = [2.0] * 8, [2.0] * 7 + [3.0]
    assert seen(same, same, same, same, other, same, same, same) == [3]
    assert seen(same, same, other, same, same) == []
    assert seen(same, same, [1.0] * 8, same, same, same) == [6]  # constant, but not the same
    assert seen(same, [], same, [], same) == [5]  # no response ended
    assert seen(*[[1.0]] * 20) == [16]  # a single response a rollout: chance, for a while


def test_the_state_goes_on() -> None:
    constant = ConstantScores()
    constant.see([0.5] * 8)
    constant.see([0.5] * 8)
    resumed = ConstantScores()
    resumed.load(json.loads(json.dumps(constant.state())))
    assert str(resumed.see([0.5] * 8)).startswith("all 24 scores of the last 3 rollouts are 0.5: there is nothing")
    again = ConstantScores()
    again.load(json.loads(json.dumps(resumed.state())))
    assert again.see([0.5] * 8) is None


def test_training_says_it_once(caplog: pytest.LogCaptureFixture) -> None:
    trained(4, env={"reward_model": count_dots})
    assert not caplog.records
    trained(5, env={"reward_model": zero})
    (record,) = caplog.records
    assert record.getMessage().startswith(f"all 24 {LINE}")


def test_a_resumed_run_counts_on_and_does_not_repeat_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rollout = 8 * 6
    run = [
        "--output-dir", str(tmp_path / "run"), "--n-envs", "8", "--max-new-tokens", "6", "--max-prompt-length", "12",
        "--reward-model", f"{__name__}:zero", "--checkpoint-every", "1",
    ]  # fmt: skip
    assert train.main([*run, "--total-timesteps", str(2 * rollout)]) == 0
    assert not caplog.records
    resume = ["--resume", str(tmp_path / "run"), "--total-timesteps"]
    assert train.main([*resume, str(3 * rollout)]) == 0
    (record,) = caplog.records
    assert record.getMessage().startswith(f"all 24 {LINE}")
    assert train.main([*resume, str(7 * rollout)]) == 0
    assert len(caplog.records) == 1
