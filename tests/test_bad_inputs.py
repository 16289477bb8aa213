"""Every row of `tests.bad_inputs` is answered by one line that names what is wrong, and changes no file."""

from __future__ import annotations

import dataclasses
import math
import shlex
import typing
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from agents import (
    AdaptiveKL,
    Alarms,
    LinearKL,
    LLMActorCriticPolicy,
    LLMTextVecEnv,
    MaskRefresh,
    ReferenceRefresh,
    TextPPO,
    make_algorithm,
    processes,
)
from agents.cli import ab, chat, collect_preferences, evaluate_actor, sweep, write_reviews
from agents.evaluation.settings import EVALUATION_RULES, EvaluationSettings
from agents.flat_settings import flat_types
from agents.iteration.settings import ITERATION_RULES, IterationSettings
from agents.pipeline.commands import run_here
from agents.policies.q_network import LLMQPolicy
from agents.policies.settings import PolicySettings
from agents.preferences.settings import COLLECTION_RULES
from agents.rollouts.buffer import TokenRolloutBuffer
from agents.rules import ALGORITHM_RULES
from agents.runs.settings import FOLDER_RULES, TRAINING_RULES, RunSettings
from agents.supervised import settings as supervised
from llm_env import ENV_ID, RewardModelError
from llm_env.default_task import DEFAULT_MODEL
from llm_env.settings import TASK_RULES
from tests.bad_inputs import COMMANDS, FILES, PYTHON, REWARD_FILES

SMALL: dict[str, Any] = {"max_new_tokens": 6, "max_prompt_length": 12}
REFUSALS = (ValueError, TypeError, OSError, RewardModelError)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("row", COMMANDS, ids=lambda row: row[0])
def test_commands(
    row: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    monkeypatch.chdir(tmp_path)
    command, *words = shlex.split(row[0].replace("{actor}", DEFAULT_MODEL))
    assert run_here(command, words) not in (0, 130)
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1, error
    assert error.startswith("error: ")
    for word in row[1:]:
        assert word in error
    assert contents(tmp_path) == FILES


def names() -> dict[str, Any]:
    def env() -> Any:
        made = gym.make(ENV_ID, disable_env_checker=True, **SMALL).unwrapped
        made.reset(seed=0)
        return made

    def vec() -> Any:
        made = gym.make_vec(ENV_ID, num_envs=2, **SMALL)
        made.reset(seed=0)
        return made

    def venv() -> LLMTextVecEnv:
        made = LLMTextVecEnv(2, **SMALL)
        made.reset()
        return made

    def spaces() -> tuple[Any, Any]:
        made = venv()
        return made.observation_space, made.action_space

    return {
        **{"gym": gym, "np": np, "ENV": ENV_ID, "nan": math.nan, "inf": math.inf, "env": env, "vec": vec, "venv": venv},
        **{"make_algorithm": make_algorithm, "LLMTextVecEnv": LLMTextVecEnv, "TextPPO": TextPPO, "spaces": spaces},
        **{"LLMActorCriticPolicy": LLMActorCriticPolicy, "LLMQPolicy": LLMQPolicy, "AdaptiveKL": AdaptiveKL},
        **{"Alarms": Alarms, "LinearKL": LinearKL, "MaskRefresh": MaskRefresh, "ReferenceRefresh": ReferenceRefresh},
        "policy": lambda **settings: LLMActorCriticPolicy(*spaces(), lambda _: 0.0, **settings),
        "buffer": lambda **settings: TokenRolloutBuffer(6, *spaces(), n_envs=2, **settings),
    }


@pytest.mark.parametrize("row", PYTHON, ids=lambda row: row[0])
def test_python(row: tuple[str, ...]) -> None:
    with pytest.raises(REFUSALS) as caught:
        eval(row[0], names())
    message = str(caught.value)
    assert len(message.splitlines()) == 1, message
    for word in row[1:]:
        assert word in message


def as_dict(prompts: list[str], responses: list[str]) -> Any:
    return {float(i): r for i, r in enumerate(responses)}


def as_text(prompts: list[str], responses: list[str]) -> Any:
    return "1" * len(responses)


def as_texts(prompts: list[str], responses: list[str]) -> Any:
    return ["1"] * len(responses)


def as_set(prompts: list[str], responses: list[str]) -> Any:
    return {1.0}


def too_few(prompts: list[str], responses: list[str]) -> Any:
    return []


def as_nan(prompts: list[str], responses: list[str]) -> Any:
    return [math.nan] * len(responses)


@pytest.mark.parametrize(("function", "message"), REWARD_FILES)
def test_scores(function: str, message: str) -> None:
    env = gym.make(ENV_ID, reward_model=globals()[function], **SMALL).unwrapped
    env.reset(seed=0)
    with pytest.raises(RewardModelError) as caught:
        env.step(next(iter(env.task.eos_ids)))  # type: ignore[attr-defined]
    assert function in str(caught.value)
    assert message in str(caught.value)


def test_there_are_as_many_rows_as_promised() -> None:
    rows = [row[0] for row in (*COMMANDS, *PYTHON)]
    assert len(rows) == len(set(rows)) >= 150


SUPERVISED_RULES = processes.RULES | supervised.UPDATE_RULES | supervised.TRAINER_RULES


@pytest.mark.parametrize(
    ("cls", "rules"),
    [
        (RunSettings, {**TASK_RULES, **ALGORITHM_RULES, **TRAINING_RULES, **FOLDER_RULES}),
        (supervised.SFTSettings, SUPERVISED_RULES | supervised.SFT_RULES),
        (supervised.RewardSettings, SUPERVISED_RULES | supervised.REWARD_RULES),
        (supervised.PreferenceSettings, SUPERVISED_RULES | supervised.PREFERENCE_RULES),
        (
            IterationSettings,
            processes.RULES
            | supervised.UPDATE_RULES
            | COLLECTION_RULES
            | ITERATION_RULES
            | TASK_RULES
            | TRAINING_RULES,
        ),
        (EvaluationSettings, EVALUATION_RULES),
        (chat.Args, chat.CHAT_RULES),
        (ab.Args, COLLECTION_RULES | ab.AB_RULES),
        (PolicySettings, ALGORITHM_RULES),
    ],
)
def test_every_number_and_flag_has_a_rule(cls: type[Any], rules: dict[str, Any]) -> None:
    kinds = {name: {kind, *typing.get_args(kind)} for name, kind in flat_types(cls).items()}
    numbers = {name for name, kind in kinds.items() if kind & {int, float, bool}}
    assert len(numbers) > 3
    assert numbers - set(rules) == set()


def test_a_check_alone_reads_a_command_line(tmp_path: Path) -> None:
    """What pipeline and sweep ask of a command before anything runs."""
    for module in (collect_preferences, write_reviews):
        module.check(["--output-dir", str(tmp_path / "out")])
    evaluate_actor.check(["--actor", "nosuch"])  # an earlier stage will write it
    assert dataclasses.is_dataclass(sweep.Args)
    assert not list(tmp_path.iterdir())
