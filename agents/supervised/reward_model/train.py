"""Trains a reward model on preferences, normalises it, and reports on it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import nn
from transformers import AutoModelForSequenceClassification, EarlyStoppingCallback, PreTrainedModel

from agents.policies.actor import adapter_config
from agents.preferences.judge import episode_of
from agents.preferences.records import Ranking, prompt_key, read_rankings
from agents.supervised.reward_model.report import (
    accuracy_by_margin,
    judged_pairs,
    summarise,
    worst_mistakes,
    write_report,
)
from agents.supervised.reward_model.trainer import RankingLoss, RankingTrainer
from agents.supervised.rows import encode_rankings, read_split
from agents.supervised.trainer import TrainerSettings, quiet_trainer, run_trainer
from llm_env.default_task import DEFAULT_MODEL
from llm_env.lm.loading import load_config, load_tokenizer, load_weights, quiet_loading, resolve_device
from llm_env.lm.names import LoadSettings
from llm_env.reward.heads import Gate
from llm_env.reward.models import ClassifierReward, FunctionReward


@dataclass(frozen=True)
class RewardSettings:
    """What is particular to reward models.

    Attributes:
        preferences: File of rankings or pairs.
        eval_preferences: Held-out ones; None: a share of the prompts.
        loss: See `RankingLoss`.
        max_length: Of prompt and response, in tokens.
        freeze_layers: Lower layers that stay as they are, the embedding with them.
        dropout: While training.
        early_stopping: Evaluations without a better held-out accuracy after which training ends; 0: never.
        heads: Aspects with a head of their own.
        head_weights: How much each counts; None: the same.
        gate: Learn how much each counts from the prompt.
        gold: package.module:function that knows better than the annotators; only reported.
        normalise_on: File of rankings or responses whose scores are to have mean 0 and variance 1: the reference's.
            None: the training preferences' responses.
    """

    preferences: str
    eval_preferences: str | None = None
    loss: RankingLoss = dataclasses.field(default_factory=RankingLoss)
    max_length: int = 512
    freeze_layers: int = 0
    dropout: float = 0.0
    early_stopping: int = 0
    heads: tuple[str, ...] = ()
    head_weights: tuple[float, ...] = ()
    gate: bool = False
    gold: str | None = None
    normalise_on: str | None = None

    def check(self) -> None:
        """Checks what can be checked before anything is read.

        Raises:
            ValueError: a setting breaks its rule.
        """
        if self.max_length < 2:
            raise ValueError(f"max_length={self.max_length} must be at least 2 tokens.")
        if self.freeze_layers < 0 or self.early_stopping < 0:
            raise ValueError(
                f"freeze_layers={self.freeze_layers} and early_stopping={self.early_stopping} must be at least 0."
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} must be at least 0 and below 1.")
        if len(self.heads) == 1 or len(set(self.heads)) < len(self.heads):
            raise ValueError(f"heads={self.heads} must be two or more different aspects, or none.")
        if self.head_weights and (self.gate or len(self.head_weights) != len(self.heads)):
            raise ValueError(
                f"head_weights={self.head_weights} must be one for each of heads={self.heads}, without a gate."
            )
        if self.gate and not self.heads:
            raise ValueError("gate=True weighs several heads; name them: --heads helpful polite.")


def train_reward_model(
    settings: TrainerSettings, own: RewardSettings, console: Console | None = None
) -> dict[str, Any]:
    """Trains, and writes ``reward_model/``, ``report.json``, ``report.png`` and ``mistakes.md``.

    Returns:
        What ``report.json`` holds.

    Raises:
        FileNotFoundError, FileExistsError, ValueError: something cannot be read, or a setting breaks its rule; of a bad
            record, file and line are named.
    """
    from datasets import Dataset, disable_progress_bars
    from trl import RewardConfig

    settings.check()
    own.check()
    gold = FunctionReward(own.gold).function if own.gold else None
    train, held_out = read_split(own.preferences, own.eval_preferences, settings.heldout_share, settings.seed)
    name = settings.model or DEFAULT_MODEL
    tokenizer = load_tokenizer(name, trust_remote_code=settings.trust_remote_code)
    heads = list(own.heads) or None
    rows, left_out = encode_rankings(train, tokenizer, own.max_length, own.loss.name == "bradley_terry", heads)
    test_rows, _ = encode_rankings(held_out, tokenizer, own.max_length, own.loss.name == "bradley_terry", heads)
    for what, some in (("training", rows), ("held-out", test_rows)):
        if not some:
            raise ValueError(f"No {what} preference is left to learn from; left out: {left_out}.")
    model = load_base(name, settings, own, tokenizer)
    quiet_trainer()
    disable_progress_bars()
    arguments = settings.trainer_arguments(len(rows))
    if own.early_stopping:
        arguments |= {
            "load_best_model_at_end": True,
            "metric_for_best_model": "eval_accuracy",
            "greater_is_better": True,
        }
    trainer = RankingTrainer(
        model=model,
        args=RewardConfig(**arguments, max_length=None, disable_dropout=not own.dropout, remove_unused_columns=False),
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(test_rows),
        processing_class=tokenizer,
        peft_config=adapter_config(model, settings.lora_rank, task_type="SEQ_CLS") if settings.lora_rank else None,
        callbacks=[EarlyStoppingCallback(own.early_stopping)] if own.early_stopping else None,
        ranking_loss=own.loss,
        head_weights=head_shares(own),
    )
    trained = run_trainer(trainer, settings, console or Console(quiet=True))
    folder = settings.output_dir / "reward_model"
    save(trained, tokenizer, folder, own)
    mean, std = normalise(folder, train, own, settings)
    report = evaluate(folder, held_out, settings, gold)
    report |= {
        "loss": own.loss.name,
        "left_out": left_out,
        "train_rows": len(rows),
        "score_mean": mean,
        "score_std": std,
    }
    report["log"] = trainer.state.log_history
    mistakes = report.pop("worst_mistakes")
    write_report(settings.output_dir, report, mistakes)
    return {**report, "worst_mistakes": mistakes}


def head_shares(own: RewardSettings) -> list[float] | None:
    """How much each head counts, or None with one head."""
    if not own.heads:
        return None
    return list(own.head_weights) or [1 / len(own.heads)] * len(own.heads)


def load_base(name: str, settings: TrainerSettings, own: RewardSettings, tokenizer: Any) -> PreTrainedModel:
    """The model to train: the trunk of any model with a fresh head, or a reward model to go on with.

    A fresh head is drawn with standard deviation 1/√(H + 1) (Stiennon et al. 2020; "The N Implementation Details of RLHF
    with PPO", Huang et al. 2023).
    """
    load = LoadSettings("float32", "cpu", settings.trust_remote_code)
    config = load_config(name, "model", "model", settings.trust_remote_code)
    fresh = not any("SequenceClassification" in a for a in getattr(config, "architectures", None) or [])
    torch.manual_seed(settings.seed)
    labels = max(1, len(own.heads))
    model = load_weights(AutoModelForSequenceClassification, name, "model", "model", load, num_labels=labels)
    if (head := getattr(model, "score", None)) is not None:
        if not isinstance(head, nn.Linear) or head.out_features != labels:
            raise ValueError(
                f"model={name!r} has a head of {getattr(head, 'out_features', '?')} labels; {labels} are asked for."
            )
        if fresh:
            nn.init.normal_(head.weight, std=1 / (head.in_features + 1) ** 0.5)
    elif own.heads:
        raise ValueError(f"model={name!r} is an encoder; several heads need a decoder.")
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    model.config.pad_token_id = pad
    if own.gate:
        assert isinstance(head, nn.Linear)
        model.gate = Gate(head.in_features, labels)
    if own.dropout:
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = own.dropout
        for field in ("attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop"):
            if hasattr(model.config, field):
                setattr(model.config, field, own.dropout)
        for module in model.modules():
            if isinstance(getattr(module, "attention_dropout", None), float):
                module.attention_dropout = own.dropout  # type: ignore[assignment]
    freeze_lower(model, own.freeze_layers, name)
    return model


def freeze_lower(model: PreTrainedModel, count: int, name: str) -> None:
    """Freezes the embedding and the lowest layers.

    Raises:
        ValueError: the model has fewer layers, or they cannot be found.
    """
    if not count:
        return
    stacks = [m for m in model.base_model.modules() if isinstance(m, nn.ModuleList) and len(m) > 1]
    if not stacks or count > len(stacks[0]):
        found = len(stacks[0]) if stacks else 0
        raise ValueError(f"freeze_layers={count}: model={name!r} has {found} layers.")
    model.get_input_embeddings().requires_grad_(False)
    for layer in stacks[0][:count]:
        layer.requires_grad_(False)


def save(model: PreTrainedModel, tokenizer: Any, folder: Path, own: RewardSettings) -> None:
    """Writes the model folder, dropout off, with what its heads are called."""
    for field in ("attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop"):
        if hasattr(model.config, field):
            setattr(model.config, field, 0.0)
    gate = getattr(model, "gate", None)
    if own.heads:
        model.config.reward_heads = list(own.heads)
        model.config.reward_gate = gate is not None
        if gate is None:
            model.config.reward_head_weights = head_shares(own)
    if gate is not None:
        del model.gate
    with quiet_loading():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if gate is not None:
        gate.save(folder)


def raw_scores(folder: Path, rankings: Sequence[Ranking], settings: TrainerSettings) -> list[dict[str, float]]:
    """Each response's score before normalisation, in float32, as the environment reads it; by response id, for each ranking."""
    load = LoadSettings("float32", str(resolve_device(settings.device)), settings.trust_remote_code)
    tokenizer = load_tokenizer(str(folder), "reward_model", settings.trust_remote_code)
    model = ClassifierReward(str(folder), load, tokenizer)
    model.mean, model.std = 0.0, 1.0
    episodes = [episode_of(r.candidates.prompt, c, model) for r in rankings for c in r.candidates.responses]
    flat = iter(model.score(episodes))
    return [{c.id: next(flat) for c in r.candidates.responses} for r in rankings]


def normalise(
    folder: Path, train: Sequence[Ranking], own: RewardSettings, settings: TrainerSettings
) -> tuple[float, float]:
    """Writes mean and standard deviation of the reference responses' scores to ``config.json``; returns them."""
    rankings = train if own.normalise_on is None else read_rankings(own.normalise_on)
    distinct = {prompt_key(r.candidates.prompt) + r.candidates.id: r for r in rankings}  # each prompt's responses once
    scores = np.array([v for s in raw_scores(folder, list(distinct.values()), settings) for v in s.values()])
    mean, std = float(scores.mean()), float(scores.std())
    if not std > 0:
        raise ValueError("The reward model gives all reference responses the same score: it has learned nothing.")
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"score_mean": mean, "score_std": std}
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return mean, std


def evaluate(folder: Path, held_out: Sequence[Ranking], settings: TrainerSettings, gold: Any = None) -> dict[str, Any]:
    """The report on held-out preferences."""
    scores = raw_scores(folder, held_out, settings)
    pairs = judged_pairs(held_out, scores, gold)
    flat = [s[c.id] for r, s in zip(held_out, scores, strict=True) for c in r.candidates.responses]
    lengths = [len(c.text.split()) for r in held_out for c in r.candidates.responses]
    report = summarise(pairs, flat, lengths)
    report["accuracy_by_margin"] = accuracy_by_margin(pairs)
    report["worst_mistakes"] = worst_mistakes(pairs)
    return report
