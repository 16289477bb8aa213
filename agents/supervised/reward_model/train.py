"""Trains a reward model on preferences, normalizes its scores, and reports on it."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from transformers import EarlyStoppingCallback, PreTrainedModel

from agents.distributed import ranks
from agents.evaluation.gold import load_gold
from agents.files import write_json
from agents.policies.actor import adapter_config
from agents.preferences.judge import episode_of
from agents.preferences.records import Ranking, prompt_key, read_rankings
from agents.supervised.reward_model.hacks import hacks_report, split_hacks
from agents.supervised.reward_model.losses import RankingLoss
from agents.supervised.reward_model.model import head_shares, load_base, save_reward_model
from agents.supervised.reward_model.report import (
    accuracy_by_margin,
    judged_pairs,
    summarize,
    worst_mistakes,
    write_report,
)
from agents.supervised.reward_model.stars import StarThresholds, given_stars, held_out_stars
from agents.supervised.reward_model.trainer import RankingTrainer
from agents.supervised.rows import encode_rankings, encode_stars, read_split
from agents.supervised.settings import RewardSettings
from agents.supervised.trainer import (
    in_processes,
    model_width,
    quiet_trainer,
    run_trainer,
    trainer_arguments,
    training_log,
)
from llm_env.default_task import DEFAULT_MODEL
from llm_env.lm.loading import load_tokenizer, resolve_device
from llm_env.lm.names import LoadSettings
from llm_env.reward.models import ClassifierReward
from llm_env.reward.scores import TextReward
from llm_env.text.prompts import PromptRecord

NORMALIZED_ON = 1024
"""Responses whose scores' mean and deviation are taken, at most: the mean is right within 0.03 deviations."""


def train_reward_model(settings: RewardSettings, console: Console | None = None) -> dict[str, Any]:
    """Trains, and writes ``reward_model/``, ``report.json``, ``report.png`` and ``mistakes.md`` to the output folder.

    Args:
        settings: The preferences, the model, and how to train.
        console: Where progress is printed; None: nowhere.

    Returns:
        What ``report.json`` holds.

    Raises:
        FileNotFoundError, FileExistsError, ValueError: something cannot be read, or a setting breaks its rule; of a bad
            record, file and line are named.
    """
    if settings.starts_processes:
        return in_processes("train_reward_model", settings, "report.json")
    # As it is now: the gold function may change the current folder.
    settings = dataclasses.replace(settings, output_dir=settings.output_dir.absolute())
    settings.check()
    gold = load_gold(settings.gold or None)
    train, held_out = read_split(settings.preferences, settings.eval_preferences, settings.heldout_share, settings.seed)
    if gold is not None:
        gold.check_prompts([PromptRecord(r.candidates.prompt, r.candidates.columns, r.where) for r in held_out])
    name = settings.model or DEFAULT_MODEL
    tokenizer = load_tokenizer(name, "model", settings.trust_remote_code, settings.special_tokens_in_text)
    hacks, held_out_hacks = read_hacks(settings, held_out)
    rows, left_out = _encode([*train, *hacks], tokenizer, settings)
    held_out_rows, _ = _encode(held_out, tokenizer, settings)
    for side, side_rows in (("training", rows), ("held-out", held_out_rows)):
        if not side_rows:
            raise ValueError(f"No {side} preference is left to learn from; left out: {left_out}.")

    star_mean = float(np.mean(given_stars(train))) if given_stars(train) else math.nan
    if settings.margins == "given" and all(math.isnan(m) for row in rows for m in row["margins"]):
        raise ValueError(
            f"margins='given': no record of preferences={settings.preferences!r} has a margin, scores or stars. Take "
            "margins='rank' or 'none'."
        )
    with settings.writing():
        model = load_base(name, settings, tokenizer)
        if settings.loss == "ordinal":
            model.thresholds = StarThresholds(given_stars(train))
        trainer = _make_trainer(settings, model, tokenizer, rows, held_out_rows, star_mean)
        console = console or Console(quiet=True)
        trained = run_trainer(trainer, settings, console)
        folder = settings.output_dir / "reward_model"

        def result() -> dict[str, Any]:
            save_reward_model(
                trained, tokenizer, folder, settings, star_mean if settings.loss == "regression" else None
            )
            mean, std = normalize(folder, train, settings, console)
            count = sum(len(r.candidates.responses) for r in held_out)
            console.print(f"scoring {count:,} held-out responses")
            report = evaluate(folder, held_out, settings, gold, star_mean)
            report |= {
                "loss": settings.loss,
                "left_out": left_out,
                "train_rows": len(rows),
                "score_mean": mean,
                "score_std": std,
                "log": training_log(trainer),
            }
            if held_out_hacks:
                report["hacks"] = hacks_report(held_out_hacks, raw_scores(folder, held_out_hacks, settings))
                report["train_hacks"] = len(hacks)
            mistakes = report.pop("worst_mistakes")
            write_report(settings.output_dir, report, mistakes)
            return {**report, "worst_mistakes": mistakes}

        report: dict[str, Any] = ranks().first_does(result)
        return report


def read_hacks(settings: RewardSettings, held_out: Sequence[Ranking]) -> tuple[list[Ranking], list[Ranking]]:
    """The adversarial pairs to train on, none where the settings want a report only, and those to report on.

    Raises:
        FileNotFoundError, ValueError: they cannot be read, are no pairs, or none is left to train on.
    """
    if settings.hacks is None:
        return [], []
    hacks = read_rankings(settings.hacks, "hacks")
    for hack in hacks:
        if len(hack.pairs()) != 1:
            raise ValueError(f"{hack.where}: hacks are pairs of a good response and a trick, 'chosen' and 'rejected'.")
    train, reported = split_hacks(hacks, held_out, settings.heldout_share, settings.seed)
    return (train if settings.train_on_hacks else []), reported


def _encode(
    rankings: Sequence[Ranking], tokenizer: Any, settings: RewardSettings
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Rows to train on, and how many records were left out, by reason."""
    if settings.learns_stars:
        return encode_stars(rankings, tokenizer, settings.max_length)
    in_pairs = settings.loss == "bradley_terry"
    return encode_rankings(rankings, tokenizer, settings.max_length, in_pairs, list(settings.heads) or None)


def _make_trainer(
    settings: RewardSettings,
    model: PreTrainedModel,
    tokenizer: Any,
    rows: list[dict[str, Any]],
    held_out: list[dict[str, Any]],
    star_mean: float = 0.0,
) -> RankingTrainer:
    """`RankingTrainer` on encoded rows, with LoRA adapters and early stopping where the settings want them."""
    from datasets import Dataset
    from trl import RewardConfig

    quiet_trainer()
    arguments = trainer_arguments(settings, len(rows), model_width(model))
    if settings.early_stopping:
        arguments |= {
            "load_best_model_at_end": True,
            "metric_for_best_model": "eval_accuracy",
            "greater_is_better": True,
        }
    lora = adapter_config(model, settings.lora_rank, task_type="SEQ_CLS") if settings.lora_rank else None
    if lora is not None:  # trained as they are, without adapters
        lora.modules_to_save = [name for name in ("thresholds", "mlp_head") if hasattr(model, name)] or None
    return RankingTrainer(
        model=model,
        args=RewardConfig(
            **arguments, max_length=None, disable_dropout=not settings.dropout, remove_unused_columns=False
        ),
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(held_out),
        processing_class=tokenizer,
        peft_config=lora,
        callbacks=[EarlyStoppingCallback(settings.early_stopping)] if settings.early_stopping else None,
        ranking_loss=None if settings.learns_stars else RankingLoss(settings),
        star_mean=star_mean,
        head_weights=head_shares(settings),
    )


def raw_scores(folder: Path, rankings: Sequence[Ranking], settings: RewardSettings) -> list[dict[str, float]]:
    """Scores each response before normalization, in float32, as the environment reads it.

    Args:
        folder: A reward model's folder.
        rankings: Rankings whose responses are scored.
        settings: Says on which device, and whether a repository's code may run.

    Returns:
        For each ranking the scores by response id.
    """
    device, in_text = str(resolve_device(settings.device)), settings.special_tokens_in_text
    load = LoadSettings("float32", device, settings.trust_remote_code, in_text)
    tokenizer = load_tokenizer(str(folder), "reward_model", settings.trust_remote_code, in_text)
    model = ClassifierReward(str(folder), load, tokenizer)
    model.mean, model.std = 0.0, 1.0  # a folder that was normalized before says otherwise
    episodes = [episode_of(r.candidates.prompt, c, model) for r in rankings for c in r.candidates.responses]
    flat = iter(model.score(episodes))
    return [{c.id: next(flat) for c in r.candidates.responses} for r in rankings]


def normalize(
    folder: Path, train: Sequence[Ranking], settings: RewardSettings, console: Console
) -> tuple[float, float]:
    """Writes mean and standard deviation of the reference responses' scores to the reward model's ``config.json``.

    Args:
        folder: The reward model's folder.
        train: The training preferences, whose responses are the reference ones by default.
        settings: ``normalize_on`` names a file of other reference responses; the seed draws `NORMALIZED_ON` of many.
        console: Where it is said that they are read.

    Returns:
        (mean, standard deviation).

    Raises:
        ValueError: all scores are equal.
    """
    other = settings.normalize_on
    rankings = train if other is None else read_rankings(other, "normalize_on")
    distinct = {prompt_key(r.candidates.prompt) + r.candidates.id: r for r in rankings}  # each prompt's responses once
    each = list(distinct.values())
    some = [each[i] for i in np.random.default_rng(settings.seed).permutation(len(each))]
    ends = np.cumsum([len(r.candidates.responses) for r in some])
    some = some[: int(np.searchsorted(ends, NORMALIZED_ON)) + 1]
    console.print(f"scoring {ends[len(some) - 1]:,} reference responses, for the mean and deviation of scores")
    scores = np.array([v for s in raw_scores(folder, some, settings) for v in s.values()])
    mean, std = float(scores.mean()), float(scores.std())
    if not std > 0:
        raise ValueError("The reward model gives all reference responses the same score: it has learned nothing.")
    path = folder / "config.json"
    write_json(path, json.loads(path.read_text(encoding="utf-8")) | {"score_mean": mean, "score_std": std}, indent=2)
    return mean, std


def evaluate(
    folder: Path,
    held_out: Sequence[Ranking],
    settings: RewardSettings,
    gold: TextReward | None = None,
    star_mean: float = math.nan,
) -> dict[str, Any]:
    """The report on held-out preferences.

    Args:
        folder: The reward model's folder.
        held_out: Preferences that were not trained on.
        settings: As for `raw_scores`.
        gold: Scores texts in an order that is compared with the model's; None: no such comparison.
        star_mean: Mean of the training stars.

    Raises:
        ValueError: there is no pair with a better and a worse side, and the loss is not one of stars.
    """
    scores = raw_scores(folder, held_out, settings)
    pairs = judged_pairs(held_out, scores, gold)
    flat = [s[c.id] for r, s in zip(held_out, scores, strict=True) for c in r.candidates.responses]
    words = [len(c.text.split()) for r in held_out for c in r.candidates.responses]
    # Stars may be of single responses, of which no two can be compared within a prompt.
    report: dict[str, Any] = summarize(pairs, flat, words) if pairs or not settings.learns_stars else {"pairs": 0}
    if pairs:
        report["accuracy_by_margin"] = accuracy_by_margin(pairs)
    report["worst_mistakes"] = worst_mistakes(pairs)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if (of_stars := held_out_stars(held_out, scores, config, star_mean)) is not None:
        report["stars"] = of_stars
    return report
