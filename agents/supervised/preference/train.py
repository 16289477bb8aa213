"""Trains a causal LM on preferences with one of `METHODS`, and reports on it."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from agents.figures import can_draw
from agents.named_values import named_values
from agents.policies.actor import adapter_config
from agents.preferences.records import Ranking
from agents.preferences.selection import PAIRS, pairs_of
from agents.supervised.preference.losses import dpo_loss, dpop_loss, tdpo1_loss, tdpo2_loss
from agents.supervised.preference.methods import CONTRASTIVE, METHODS, ODDS, UNPAIRED, Method, method
from agents.supervised.rows import encode_rankings, read_split
from agents.supervised.sft import load_model, sample_responses
from agents.supervised.trainer import TrainerSettings, quiet_trainer, run_trainer
from llm_env.default_task import DEFAULT_MODEL
from llm_env.lm.loading import load_tokenizer, quiet_loading
from llm_env.text.texts import TextRecord

METHOD_OPTIONS = ("dpop_lambda", "tdpo_alpha", "label_smoothing", "simpo_gamma", "sft_coef")
"""Settings that only some methods have."""


@dataclass(frozen=True, kw_only=True)
class PreferenceSettings(TrainerSettings):
    """Settings of preference optimisation."""

    learning_rate: float = 3e-4
    """Step size of AdamW after warm-up. The default suits the tiny model; for 100M parameters 1e-5 to 5e-5, for LoRA 1e-4."""
    preferences: str
    """File of rankings or pairs (.jsonl, .csv, .parquet), or a dataset id."""
    eval_preferences: str | None = None
    """Held-out ones, of other prompts. Default: those of a share of the prompts."""
    loss: str = "dpo"
    """dpo, dpop, tdpo1, tdpo2, ipo, kto, orpo, cpo, simpo, hinge (SLiC), robust, exo_pair, nca_pair, bco_pair, sppo_hard, aot,
    apo_zero, apo_down, discopop."""
    pairs: str = "all"
    """Which pairs of a ranking are trained on: all, or best_worst."""
    beta: float | None = None
    """How much the method holds to its reference; what beta is for simpo, cpo (temperature) and orpo (lambda, the weight of the
    odds ratio) their papers say. Default: the paper's, mostly 0.1."""
    ref_model: str | None = None
    """Folder or hub id of the reference. Default: the model as it starts; with LoRA, the adapters switched off."""
    cache_reference: bool = False
    """Compute the reference's log-probs once, before training, and keep them in output_dir: no second model in memory, and less
    time over several epochs."""
    dpop_lambda: float | None = None
    """DPOP's lambda, the price of making a preferred response less likely than the reference does. Default: the
    paper's 50, under which the tiny default model hardly moves; 0.5 lets it learn."""
    tdpo_alpha: float | None = None
    """TDPO2's alpha, the weight of the sequential KL. Default: 0.5."""
    label_smoothing: float | None = None
    """Share of pairs taken to be labelled the wrong way round, for robust, exo_pair, aot, cpo and simpo."""
    simpo_gamma: float | None = None
    """SimPO's target margin gamma. Default: 1."""
    sft_coef: float | None = None
    """Weight of the preferred response's own log-likelihood beside the loss (RPO, Pang et al. 2024; cpo's alpha)."""
    max_prompt_length: int = 64
    """Tokens; longer prompts are cut on the left, as the environment does."""
    max_length: int = 512
    """Tokens of prompt and response; longer responses are cut on the right."""
    n_samples: int = 8
    """Held-out prompts to respond to in the end."""
    trl_kwargs: tuple[str, ...] = ()
    """Any other setting of TRL's trainer, as name=value: f_divergence_type=js_divergence desirable_weight=1.33 …"""

    def check(self) -> None:
        """Checks the numbers, and that the folder is free.

        Raises:
            ValueError, FileExistsError, FileNotFoundError: a setting breaks its rule, or the method does not have it.
        """
        super().check()
        row = method(self.loss)
        for name in METHOD_OPTIONS:
            value = getattr(self, name)
            if value is None:
                continue
            if name not in row.options:
                able = ", ".join(n for n, m in METHODS.items() if name in m.options)
                raise ValueError(f"{name}: loss={self.loss!r} does not have it; {able} do.")
            if not math.isfinite(value) or value < 0:
                raise ValueError(f"{name}={value} must be a finite number, at least 0.")
        if self.label_smoothing is not None and self.label_smoothing >= 0.5:
            raise ValueError(f"label_smoothing={self.label_smoothing} must be below 0.5.")
        if self.beta is not None and (not math.isfinite(self.beta) or self.beta <= 0):
            raise ValueError(f"beta={self.beta} must be a finite number above 0.")
        if not row.reference and (self.ref_model is not None or self.cache_reference):
            raise ValueError(f"loss={self.loss!r} has no reference: leave ref_model and cache_reference out.")
        if row.whole and self.cache_reference:
            raise ValueError(
                f"loss={self.loss!r} compares whole distributions with the reference's; cached log-probs do not hold them. "
                "Leave cache_reference out."
            )
        if not 1 <= self.max_prompt_length < self.max_length:
            raise ValueError(
                f"max_prompt_length={self.max_prompt_length} must be at least 1 and below max_length={self.max_length}."
            )
        if self.n_samples < 0:
            raise ValueError(f"n_samples={self.n_samples} must be at least 0.")
        if self.pairs not in PAIRS:
            raise ValueError(f"pairs={self.pairs!r} is not known; use one of {', '.join(PAIRS)}.")
        named_values("trl_kwargs", self.trl_kwargs)


def optimise(settings: PreferenceSettings, console: Console | None = None) -> dict[str, Any]:
    """Trains, and writes ``actor/``, ``preference.json`` and ``preference.png``.

    Returns:
        What ``preference.json`` holds: held-out accuracy of the implicit reward and its parts, the log, samples.

    Raises:
        FileNotFoundError, FileExistsError, ValueError: something cannot be read, or a setting breaks its rule; of a bad
            record, file and line are named.
    """
    settings.check()
    row = method(settings.loss)
    train, held_out = read_split(settings.preferences, settings.eval_preferences, settings.heldout_share, settings.seed)
    name = settings.model or DEFAULT_MODEL
    tokenizer = load_tokenizer(name, trust_remote_code=settings.trust_remote_code)
    pairs, left_out = _pairs(train, tokenizer, settings)
    held_out_pairs, _ = _pairs(held_out, tokenizer, settings)
    for what, some in (("training", pairs), ("held-out", held_out_pairs)):
        if not some:
            raise ValueError(f"No {what} pair is left to learn from; left out: {left_out}.")
    trainer = make_trainer(settings, row, name, tokenizer, pairs, held_out_pairs)
    trained = run_trainer(trainer, settings, console or Console(quiet=True))
    log = trainer.state.log_history
    measured = [entry for entry in log if "eval_loss" in entry]
    report: dict[str, Any] = {
        "loss": settings.loss,
        "source": row.source,
        "beta": settings.beta or row.beta,
        "model": name,
        "reference": (settings.ref_model or name) if row.reference else None,
        "pairs": len(pairs),
        "heldout_pairs": len(held_out_pairs),
        "left_out": left_out,
        "heldout": {
            k.removeprefix("eval_"): v for k, v in (measured[-1] if measured else {}).items() if k.startswith("eval_")
        },
        "log": log,
        "samples": sample_responses(trained, tokenizer, _prompts(held_out), settings.n_samples),
    }
    with quiet_loading():
        trained.save_pretrained(settings.output_dir / "actor")
    tokenizer.save_pretrained(settings.output_dir / "actor")
    path = settings.output_dir / "preference.json"
    path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if can_draw():
        draw(log, settings.output_dir / "preference.png", row.reference)
    return report


def _pairs(
    rankings: Sequence[Ranking], tokenizer: Any, settings: PreferenceSettings
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    from agents.supervised.preference.trainers import pair_rows

    if settings.pairs != "all":
        rankings = pairs_of(rankings, settings.pairs)
    rows, left_out = encode_rankings(
        rankings, tokenizer, settings.max_length, True, max_prompt_length=settings.max_prompt_length
    )
    return pair_rows(rows), left_out


def _prompts(rankings: Sequence[Ranking]) -> list[TextRecord]:
    """Each prompt once."""
    return list({str(r.candidates.prompt): TextRecord(r.candidates.prompt, " ") for r in rankings}.values())


def make_trainer(
    settings: PreferenceSettings,
    row: Method,
    name: str,
    tokenizer: Any,
    pairs: list[dict[str, Any]],
    held_out: list[dict[str, Any]],
) -> Any:
    """TRL's trainer for a method, with its model, reference, arguments and rows.

    Raises:
        ValueError, TypeError: `trl_kwargs` has what TRL's configuration does not know or refuses.
    """
    from datasets import disable_progress_bars

    from agents.supervised.preference import trainers

    quiet_trainer()
    disable_progress_bars()
    model = load_model(name, settings, False)
    arguments = settings.trainer_arguments(2 * len(pairs) if row.trainer == UNPAIRED else len(pairs))
    config = {**arguments, "beta": settings.beta or row.beta, **row.config, "max_length": None}
    common: dict[str, Any] = {
        "model": model,
        "processing_class": tokenizer,
        "peft_config": adapter_config(model, settings.lora_rank) if settings.lora_rank else None,
    }
    if settings.label_smoothing is not None:
        config["label_smoothing"] = settings.label_smoothing
    if settings.simpo_gamma is not None:
        config["simpo_gamma"] = settings.simpo_gamma
    if row.trainer in (ODDS, CONTRASTIVE):
        if settings.sft_coef is not None:
            config["cpo_alpha"] = settings.sft_coef
        config |= {"max_length": settings.max_length, "remove_unused_columns": False}
        common["train_dataset"] = _dataset(trainers.labelled_rows(pairs))
        common["eval_dataset"] = _dataset(trainers.labelled_rows(held_out))
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        trainer_class = trainers.OddsTrainer if row.trainer == ODDS else trainers.ContrastiveTrainer
        return trainer_class(args=_config(row, config, settings), **common)
    config["precompute_ref_log_probs"] = settings.cache_reference
    if settings.ref_model is not None or not (
        settings.cache_reference or settings.lora_rank
    ):  # else the model as it starts
        common["ref_model"] = load_model(settings.ref_model or name, settings, False)
    if row.trainer == UNPAIRED:
        size = config["per_device_train_batch_size"]
        rows = [trainers.unpaired_rows(some, size, settings.seed) for some in (pairs, held_out)]
    else:
        rows = [pairs, held_out]
        if settings.sft_coef is not None:
            config |= {"loss_type": [*config["loss_type"], "sft"], "loss_weights": [1.0, settings.sft_coef]}
    for side, some in zip(("train", "eval"), rows, strict=True):
        folder = settings.output_dir / "reference_log_probs" / side if settings.cache_reference else None
        common[f"{side}_dataset"] = _dataset(some, folder)
    args = _config(row, config, settings)
    if row.trainer == UNPAIRED:
        return trainers.UnpairedTrainer(args=args, **common)
    return trainers.PairTrainer(args=args, pair_loss=_own_loss(settings, row), needs_kl=row.whole, **common)


def _own_loss(settings: PreferenceSettings, row: Method) -> Any:
    """The loss of our own pass, its coefficients filled in; None where TRL computes it.

    DPO runs in our pass, which is faster (no padding, no logits' statistics), unless TRL is asked for something beside it.
    """
    beta = settings.beta or row.beta
    if settings.loss == "dpo" and settings.sft_coef is None and not settings.trl_kwargs:
        return lambda chosen, rejected, *_: dpo_loss(chosen, rejected, beta)
    if settings.loss == "dpop":
        penalty = 50.0 if settings.dpop_lambda is None else settings.dpop_lambda
        return lambda chosen, rejected, *_: dpop_loss(chosen, rejected, beta, penalty)
    if settings.loss == "tdpo1":
        return functools.partial(tdpo1_loss, beta=beta)
    if settings.loss == "tdpo2":
        alpha = 0.5 if settings.tdpo_alpha is None else settings.tdpo_alpha
        return functools.partial(tdpo2_loss, beta=beta, alpha=alpha)
    return None


def _config(row: Method, config: dict[str, Any], settings: PreferenceSettings) -> Any:
    """TRL's configuration.

    Raises:
        ValueError, TypeError: it does not know an entry of `trl_kwargs`, or refuses its value.
    """
    import trl
    from trl.experimental.cpo import CPOConfig
    from trl.experimental.orpo import ORPOConfig

    config_class = {UNPAIRED: trl.KTOConfig, ODDS: ORPOConfig, CONTRASTIVE: CPOConfig}.get(row.trainer, trl.DPOConfig)
    given = named_values("trl_kwargs", settings.trl_kwargs)
    for name in given:
        if name in config:
            raise ValueError(f"trl_kwargs: {name} is set by the other options already.")
        if name not in {f.name for f in dataclasses.fields(config_class)}:
            raise ValueError(f"trl_kwargs: {config_class.__name__} has no {name!r}.")
    return config_class(**config, **given)


def _dataset(rows: list[dict[str, Any]], folder: Path | None = None) -> Any:
    """A dataset in memory, or in a folder, where TRL keeps the reference's log-probs beside it."""
    from datasets import Dataset, load_from_disk

    if folder is None:
        return Dataset.from_list(rows)
    if not folder.is_dir():
        Dataset.from_list(rows).save_to_disk(folder)
    return load_from_disk(folder)


def draw(log: list[dict[str, Any]], path: Path, reference: bool) -> None:
    """Loss, implicit rewards, accuracy and log-probs over the steps, in training and held out."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 2).flat
    title = "implicit reward: β × log ratio to the reference" if reference else "β × log-prob"
    shown = (
        ("loss", ("loss",), "loss"),
        ("share of pairs in the right order", ("rewards/accuracies",), ""),
        (title, ("rewards/chosen", "rewards/rejected"), "nats × β"),
        ("log-prob of the responses", ("logps/chosen", "logps/rejected"), "nats"),
    )  # fmt: skip
    for panel, (title, names, label) in zip(panels, shown, strict=True):
        for name in names:
            for prefix, style in (("", {"alpha": 0.45}), ("eval_", {"marker": "."})):
                points = [(e["step"], e[prefix + name]) for e in log if prefix + name in e]
                points = [(x, y) for x, y in points if np.isfinite(y)]
                if points:
                    side = name.partition("/")[2]
                    color = {"chosen": "C2", "rejected": "C3"}.get(side, "C0")
                    text = (
                        f"{side + ', ' if side in ('chosen', 'rejected') else ''}{'held out' if prefix else 'training'}"
                    )
                    panel.plot(*zip(*points, strict=True), color=color, label=text, **style)
        panel.set_title(title, fontsize=10)
        panel.set_ylabel(label)
        panel.set_xlabel("step")
        panel.grid(alpha=0.3)
        if panel.get_legend_handles_labels()[0]:
            panel.legend(fontsize=8)
    figure.savefig(path, dpi=110)
