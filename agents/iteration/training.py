"""The second half of a round: the actor trains on pairs or texts, or with an algorithm of stable-baselines3."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

from agents.algorithms.table import checked_settings
from agents.console import named_values
from agents.files import write_text
from agents.flat_settings import read_settings
from agents.iteration.judging import chosen
from agents.iteration.settings import REJECTION_SAMPLING, IterationSettings
from agents.iteration.state import RoundsState, remove_folder, reward_name
from agents.output_folder import has_files
from agents.preferences.records import Ranking, write_jsonl
from agents.runs.in_processes import train_run
from agents.runs.prompts import write_prompts
from agents.runs.settings import (
    NO_ALARM,
    AlgorithmSettings,
    FolderSettings,
    RunSettings,
    TaskOptions,
    TrainingSettings,
)
from agents.supervised.preference.build import check_trl_kwargs
from agents.supervised.preference.methods import METHODS
from agents.supervised.preference.train import train_on_preferences
from agents.supervised.reward_model.train import train_reward_model
from agents.supervised.settings import METHOD_OPTIONS, PreferenceSettings, RewardSettings, SFTSettings, UpdateSettings
from agents.supervised.sft import fine_tune

LEAST_MAX_LENGTH = 512
"""Pairs of `first_preferences` may be longer than what the actor writes."""


def train(state: RoundsState, number: int) -> None:
    """Trains on the pairs or texts that were chosen in this round and in the `keep_rounds` before it."""
    settings, folder = state.settings.of_round(number), state.round_folder(number)
    rounds = range(max(1, number - settings.keep_rounds), number + 1)
    chosen = [(state.round_folder(n) / "train.jsonl").read_text(encoding="utf-8") for n in rounds]
    data = folder / "training_data.jsonl"
    write_text(data, "".join(chosen))
    if settings.method == REJECTION_SAMPLING:
        train_on_texts(state, number, data)
    else:
        train_on_pairs(state, number, data)
    remove_folder(folder / "training" / "checkpoints")


def train_on_texts(state: RoundsState, number: int, data: Path) -> None:
    """Fine-tunes on the best responses.

    Args:
        state: Settings and folder of the rounds.
        number: Number of the round, from 1.
        data: Texts, one JSON record a line.
    """
    own = trainer_settings(state, number)
    fine_tune(text_settings(state.settings.of_round(number), data, own), state.console)


def train_on_pairs(state: RoundsState, number: int, data: Path) -> None:
    """Trains with a preference loss.

    Args:
        state: Settings and folder of the rounds.
        number: Number of the round, from 1.
        data: Pairs, one JSON record a line.
    """
    settings = state.settings.of_round(number)
    has_first_reference = settings.reference_name == "first" and METHODS[settings.method].reference
    own = trainer_settings(state, number)
    own["ref_model"] = state.first if has_first_reference else None
    train_on_preferences(pair_settings(settings, data, own), state.console)


def text_settings(settings: IterationSettings, data: Path, own: dict[str, Any]) -> SFTSettings:
    """A round's training on texts.

    Args:
        settings: The settings of the rounds.
        data: File of the texts to learn, JSONL with prompt and response.
        own: What is this round's own, as `trainer_settings` gives it.
    """
    length = settings.max_prompt_length + settings.max_new_tokens + 1  # and an end token
    return SFTSettings(**own, texts=str(data), max_length=length, n_samples=0)


def pair_settings(settings: IterationSettings, data: Path, own: dict[str, Any]) -> PreferenceSettings:
    """A round's training on pairs; the arguments are those of `text_settings`."""
    values = named_values("method_kwargs", settings.method_kwargs)
    options = {k: v for k, v in values.items() if k in METHOD_OPTIONS}  # ours; the others are TRL's
    return PreferenceSettings(
        **own,
        preferences=str(data),
        loss=settings.method,
        beta=settings.beta,
        max_prompt_length=settings.max_prompt_length,
        max_length=max(LEAST_MAX_LENGTH, settings.max_prompt_length + settings.max_new_tokens + 1),
        n_samples=0,
        trl_kwargs=tuple(k for k in settings.method_kwargs if k.partition("=")[0].strip() not in options),
        **options,
    )


def check_training(settings: IterationSettings) -> None:
    """Checks the settings of the rounds' trainings, before the first round samples anything.

    Raises:
        ValueError, TypeError: the training would refuse one.
    """
    for number in range(1, 1 + max(1, len(settings.schedule))):
        _check_training(settings.of_round(number))


def _check_training(settings: IterationSettings) -> None:
    """`check_training` of the rounds of one method."""
    folder = settings.output_dir
    if settings.is_algorithm:
        run = algorithm_settings(settings, str(folder), "gold", folder)
        checked_settings(settings.method, run.algorithm_arguments())
        return
    own = {**shared_settings(settings), "output_dir": folder}
    if settings.method == REJECTION_SAMPLING:
        text_settings(settings, folder, own).check_values()
    else:
        pairs = pair_settings(settings, folder, own)
        pairs.check_values()
        check_trl_kwargs(pairs)


def shared_settings(settings: IterationSettings) -> dict[str, Any]:
    """What the rounds' trainings on pairs and on texts share, as keyword arguments of `TrainerSettings`."""
    return {
        **{field.name: getattr(settings, field.name) for field in dataclasses.fields(UpdateSettings)},
        "learning_rate": settings.learning_rate,
        "evaluations": settings.checkpoints,
    }


def trainer_settings(state: RoundsState, number: int) -> dict[str, Any]:
    """Gives `shared_settings` with what is a round's own: its folder, model and seed, and whether it goes on.

    An actor of this round that is there already was interrupted while it was written, and is removed.

    Args:
        state: Settings and folder of the rounds.
        number: Number of the round, from 1.
    """
    settings, target = state.settings.of_round(number), state.round_folder(number) / "training"
    shutil.rmtree(target / "actor", ignore_errors=True)
    return {
        **shared_settings(settings),
        "output_dir": target,
        "model": str(state.actor(number - 1)),
        "seed": settings.seed + number,
        "resume": has_files(target),
    }


def train_judge(state: RoundsState, number: int) -> None:
    """Trains a reward model on the rankings of all rounds so far, those that the round's `select` leaves.

    Raises:
        ValueError: none is left.
    """
    settings, folder = state.settings.of_round(number), state.round_folder(number)
    rankings: list[Ranking] = []
    for n in range(1, number + 1):
        rankings += chosen(state, n, settings.select)[0]
    if not rankings:
        raise ValueError(f"Round {number}: no ranking is left to train a reward model on. Select less strictly.")
    data = folder / "all_rankings.jsonl"
    write_jsonl(data, [r.to_json() for r in rankings])
    target = judge_folder(state, number)
    reward = RewardSettings(
        preferences=str(data),
        output_dir=target,
        model=state.first,
        batch_size=settings.batch_size,
        micro_batch_size=settings.micro_batch_size,
        processes=settings.processes,
        rank_timeout=settings.rank_timeout,
        resume=has_files(target),
        device=settings.device,
        trust_remote_code=settings.trust_remote_code,
        special_tokens_in_text=settings.special_tokens_in_text,
        seed=settings.seed + number,
    )
    train_reward_model(reward, state.console)


def judge_folder(state: RoundsState, number: int) -> Path:
    """The folder of the reward model that a round trains on rankings."""
    return state.round_folder(number) / "reward_modelling"


def train_with_algorithm(state: RoundsState, number: int) -> None:
    """Trains with an algorithm of stable-baselines3; `run_settings` says on which scores."""
    target = state.round_folder(number) / "training"
    config = target / "config.yaml"
    resume = config.is_file()
    if resume:
        settings = read_settings(RunSettings, config)
        names = ("reward_timeout", "reward_wait", "judge_concurrency")  # others than before, perhaps
        task = dataclasses.replace(settings.task, **{name: getattr(state.settings, name) for name in names})
        settings = dataclasses.replace(settings, task=task)
    else:
        shutil.rmtree(target, ignore_errors=True)
        settings = run_settings(state, number)
    train_run(settings, target, state.console, resume, state.settings)
    remove_folder(target / "checkpoints")


def run_settings(state: RoundsState, number: int) -> RunSettings:
    """Gives the settings of a round's training run, and writes its prompts to the round's folder.

    The reward model is the judge, or the one that was trained on the rounds' rankings (`train_judge`).

    Raises:
        ValueError: a setting breaks its rule.
    """
    settings, folder = state.settings.of_round(number), state.round_folder(number)
    write_prompts(folder / "prompts.jsonl", state.prompts)
    write_prompts(folder / "eval_prompts.jsonl", state.held_out)
    judge = state.judges[0]
    own = judge_folder(state, number) / "reward_model"
    reward_model = str(own) if settings.trains_reward_model else reward_name(judge)
    run = algorithm_settings(settings, str(state.actor(number - 1)), reward_model, folder)
    # Gold is what rounds are measured by: it must not decide when one ends.
    training = dataclasses.replace(run.training, seed=settings.seed + number, stop_on=(NO_ALARM,))
    return dataclasses.replace(run, training=training, folder=dataclasses.replace(run.folder, gold=state.gold))


def algorithm_settings(settings: IterationSettings, model: str, reward_model: str, folder: Path) -> RunSettings:
    """A round's training with an algorithm, checked.

    Args:
        settings: The settings of the rounds.
        model: The actor that the round starts from.
        reward_model: Name of the reward model that scores the responses, as `--reward-model` takes it.
        folder: The round's folder, with its prompts.

    Raises:
        ValueError: a setting breaks its rule.
    """
    return RunSettings(
        task=TaskOptions(
            model=model,
            reward_model=(reward_model,),
            prompts=str(folder / "prompts.jsonl"),
            kl_coef=TaskOptions.kl_coef if settings.beta is None else settings.beta,
            max_prompt_length=settings.max_prompt_length,
            max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            reward_timeout=settings.reward_timeout,
            reward_wait=settings.reward_wait,
            judge_prompt=settings.grading.prompt,
            judge_concurrency=settings.judge_concurrency,
            mixed_precision=settings.mixed_precision,
            device=settings.device,
            trust_remote_code=settings.trust_remote_code,
            special_tokens_in_text=settings.special_tokens_in_text,
        ),
        algorithm=AlgorithmSettings(
            algo=settings.method,
            learning_rate=settings.learning_rate,
            lora_rank=settings.lora_rank,
            algo_kwargs=settings.method_kwargs,
        ),
        training=TrainingSettings(total_timesteps=settings.total_timesteps, n_envs=settings.n_envs, seed=settings.seed),
        folder=FolderSettings(eval_prompts=str(folder / "eval_prompts.jsonl")),
    ).checked()
