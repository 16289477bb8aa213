"""Settings of the rounds: their names, and that reading them is quick."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from agents.flat_settings import flat_types
from agents.iteration.rounds import iterate
from agents.iteration.settings import IterationSettings
from agents.iteration.state import RoundsState
from agents.preferences.settings import CollectionSettings
from agents.runs.settings import TrainingSettings
from agents.supervised.settings import PreferenceSettings, UpdateSettings
from llm_env.settings import TaskSettings
from tests.conftest import ROOT

# settings.json of rounds that version 0.1.0 made with the defaults: the same command must still go on with them.
SETTINGS_OF_0_1_0 = """
{"model": null, "method": "dpo", "judge": [], "noise": 0.0, "first_preferences": null, "prompts": null, "eval_prompts": null,
 "prompts_per_round": null, "n_responses": 4, "temperature": 1.0, "max_prompt_length": 64, "max_new_tokens": 32,
 "opponent": null, "pairs": "best_worst", "select": [], "select_share": 0.5, "keep_rounds": 0, "reference": null,
 "epochs": 1.0, "learning_rate": null, "lr_schedule": "cosine", "batch_size": 32, "micro_batch_size": null, "beta": null,
 "method_kwargs": [], "total_timesteps": 20480, "n_envs": 64, "checkpoints": 2, "lora_rank": 0, "mixed_precision": "no",
 "gold": null, "reward_model": null, "n_eval": 180, "device": "auto", "trust_remote_code": false, "seed": 0}
"""


def test_rounds_of_the_version_before_go_on(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    (folder / "round_1").mkdir(parents=True)
    (folder / "round_1" / "rankings.jsonl").write_text("")
    (folder / "settings.json").write_text(SETTINGS_OF_0_1_0)
    RoundsState(IterationSettings(output_dir=folder), Console(quiet=True)).keep_settings()
    names = {*json.loads(SETTINGS_OF_0_1_0), "output_dir", "rounds", "host", "port", "evaluate_every"}
    names |= {
        "reward_timeout",
        "reward_wait",
        "special_tokens_in_text",
        "judge_mode",
        "judge_prompt",
        "judge_concurrency",
        "page",
        "corrector",
        "corrector_prompt",
        "schedule",
        "schedule_kwargs",
        "processes",
        "rank_timeout",
    }
    assert set(flat_types(IterationSettings)) == names
    with pytest.raises(ValueError, match=r"has rounds with other settings \(epochs\)"):
        RoundsState(IterationSettings(output_dir=folder, epochs=2), Console(quiet=True)).keep_settings()


def test_no_shared_setting_is_declared_again() -> None:
    own = set(vars(IterationSettings)["__annotations__"])
    for base in (CollectionSettings, UpdateSettings):
        assert not own & {f.name for f in dataclasses.fields(base)}
    settings = IterationSettings(output_dir=Path("x"))
    for name in (
        "temperature",
        "max_prompt_length",
        "max_new_tokens",
        "mixed_precision",
        "device",
        "trust_remote_code",
    ):
        assert getattr(settings, name) == getattr(TaskSettings, name), name
    for name in ("n_envs", "seed"):
        assert getattr(settings, name) == getattr(TrainingSettings, name), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0.0}, r"epochs=0.0 must be a finite number above 0"),
        ({"learning_rate": 0.0}, r"learning_rate=0.0 must be a finite number above 0"),
        ({"lr_schedule": "step"}, r"lr_schedule='step' is not known; use one of cosine, linear, constant"),
        ({"micro_batch_size": 5}, r"micro_batch_size=5 must divide batch_size=32"),
        ({"noise": -1.0}, r"noise=-1.0 must be a finite number, at least 0"),
        ({"n_envs": 0}, r"n_envs=0 must be a whole number, at least 1"),
        ({"temperature": 0.0}, r"temperature=0.0 must be"),
    ],
)
def test_shared_settings_are_checked_before_the_first_round(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        IterationSettings(output_dir=Path("x"), **changes).check()  # type: ignore[arg-type]
    if not changes.keys() & {"noise", "n_envs", "temperature"}:  # the stage's own check has the same rule
        with pytest.raises(ValueError, match=message):
            PreferenceSettings(output_dir=Path("x"), preferences="", **changes).check()  # type: ignore[arg-type]


def test_help_waits_for_no_torch_and_iterate_is_still_found() -> None:
    program = """
import contextlib, sys
from agents.cli import iterate
with contextlib.suppress(SystemExit):
    iterate.main(["--help"])
slow = {"torch", "transformers", "trl", "datasets"} & set(sys.modules)
assert not slow, slow
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--lr-schedule" in done.stdout
    assert iterate.__module__ == "agents.iteration.rounds"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"judge": ("gold", "no_such_module:f")}, "^judge='no_such_module:f': module 'no_such_module' cannot be"),
        ({"judge": ("http://host:port/",)}, "^judge='http://host:port/' must be"),
        ({"gold": "llm_env.default_task.gold:g"}, "^gold='llm_env.default_task.gold:g': module .* has no 'g'"),
        ({"reward_model": "https://u:p@host/"}, "^reward_model: the address of host has a user"),
        ({"reward_timeout": -1.0}, r"^reward_timeout=-1\.0 must be"),
    ],
)
def test_who_ranks_and_scores_is_checked_before_anything_is_written(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        iterate(IterationSettings(output_dir=tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()
