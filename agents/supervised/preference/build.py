"""Builds TRL's trainer for a preference method: its model, reference, configuration and rows."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

from agents.console import named_values
from agents.policies.actor import adapter_config
from agents.rates import WIDTH
from agents.supervised.preference import trainers
from agents.supervised.preference.losses import dpo_loss, dpop_loss, tdpo1_loss, tdpo2_loss
from agents.supervised.preference.methods import CONTRASTIVE, ODDS, UNPAIRED, Method, method
from agents.supervised.settings import REFERENCE_CACHE, PreferenceSettings
from agents.supervised.sft import load_model
from agents.supervised.trainer import model_width, quiet_trainer, trainer_arguments
from llm_env.default_task import DEFAULT_MODEL

DPOP_LAMBDA = 50.0
"""λ of Pal et al. 2024, section 5."""
TDPO_ALPHA = 0.5
"""α of Zeng et al. 2024."""


def make_trainer(
    settings: PreferenceSettings, tokenizer: Any, pairs: list[dict[str, Any]], held_out: list[dict[str, Any]]
) -> Any:
    """Builds the trainer of a method, ready to train.

    Args:
        settings: Checked settings.
        tokenizer: The model's tokenizer.
        pairs: Pairs to train on, as `pair_rows` makes them; for KTO single responses, as `sides` makes them.
        held_out: Pairs or responses to evaluate on.

    Raises:
        FileNotFoundError, ValueError: a model cannot be loaded.
        ValueError, TypeError: `trl_kwargs` has what TRL's configuration does not know or refuses.
    """
    quiet_trainer()
    row = method(settings.loss)
    model = load_model(settings.model or DEFAULT_MODEL, settings)
    common: dict[str, Any] = {
        "model": model,
        "processing_class": tokenizer,
        "peft_config": adapter_config(model, settings.lora_rank) if settings.lora_rank else None,
    }
    if row.trainer in (ODDS, CONTRASTIVE):
        return _without_reference(settings, row, common, pairs, held_out)
    return _with_reference(settings, row, common, pairs, held_out)


def _without_reference(
    settings: PreferenceSettings,
    row: Method,
    common: dict[str, Any],
    pairs: list[dict[str, Any]],
    held_out: list[dict[str, Any]],
) -> Any:
    """ORPO's and CPO's trainers, whose collator pads and needs a pad token."""
    tokenizer = common["processing_class"]
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    entries = {
        **_shared_entries(settings, row, len(pairs), model_width(common["model"])),
        "max_length": settings.max_length,
        "remove_unused_columns": False,
    }
    if settings.sft_coef is not None:
        entries["cpo_alpha"] = settings.sft_coef
    trainer = trainers.OddsTrainer if row.trainer == ODDS else trainers.ContrastiveTrainer
    return trainer(
        args=_config(row, entries, settings),
        train_dataset=_dataset(trainers.labeled_rows(pairs)),
        eval_dataset=_dataset(trainers.labeled_rows(held_out)),
        **common,
    )


def _with_reference(
    settings: PreferenceSettings,
    row: Method,
    common: dict[str, Any],
    pairs: list[dict[str, Any]],
    held_out: list[dict[str, Any]],
) -> Any:
    """DPO's and KTO's trainers, with a reference model where TRL does not make one of the model itself."""
    entries = {
        **_shared_entries(settings, row, len(pairs), model_width(common["model"])),
        "max_length": None,  # the rows are cut already
        "precompute_ref_log_probs": settings.cache_reference,
    }
    # Without a reference TRL takes the model as it starts: once, before training, for the cache; with LoRA, adapters off.
    if settings.ref_model is not None or not (settings.cache_reference or settings.lora_rank):
        common["ref_model"] = load_model(
            settings.ref_model or settings.model or DEFAULT_MODEL,
            settings,
            option="ref_model" if settings.ref_model else "model",
        )
    rows = {"train": pairs, "eval": held_out}
    if row.trainer == UNPAIRED:
        size = entries["per_device_train_batch_size"]
        rows = {side: trainers.unpaired_rows(rows[side], size, settings.seed) for side in rows}
    elif settings.sft_coef is not None:
        # TRL adds up several losses; its "sft" is the preferred response's negative log-likelihood
        entries |= {"loss_type": [*entries["loss_type"], "sft"], "loss_weights": [1.0, settings.sft_coef]}
    cache = settings.output_dir / REFERENCE_CACHE if settings.cache_reference else None
    for side, side_rows in rows.items():
        common[f"{side}_dataset"] = _dataset(side_rows, cache / side if cache else None)
    args = _config(row, entries, settings)
    if row.trainer == UNPAIRED:
        return trainers.UnpairedTrainer(args=args, **common)
    return trainers.PairTrainer(
        args=args, pair_loss=_pair_loss(settings, row), needs_kl=row.whole_distributions, **common
    )


def _shared_entries(settings: PreferenceSettings, row: Method, records: int, width: int) -> dict[str, Any]:
    """The entries that the configurations of all four trainers have; a setting given goes before the method's default."""
    entries = {**trainer_arguments(settings, records, width), "beta": settings.beta or row.beta, **row.config}
    for name in ("label_smoothing", "simpo_gamma"):
        if getattr(settings, name) is not None:
            entries[name] = getattr(settings, name)
    return entries


def _pair_loss(settings: PreferenceSettings, row: Method) -> trainers.PairLoss | None:
    """The loss that `PairTrainer` computes in its own pass, coefficients filled in; None where TRL computes it.

    DPO runs in that pass, which is faster (no padding, no logits' statistics), unless TRL is asked for something beside it.
    """
    beta = settings.beta or row.beta
    if settings.loss == "dpo" and settings.sft_coef is None and not settings.trl_kwargs:
        return lambda chosen, rejected, *_: dpo_loss(chosen, rejected, beta)
    if settings.loss == "dpop":
        penalty = DPOP_LAMBDA if settings.dpop_lambda is None else settings.dpop_lambda
        return lambda chosen, rejected, *_: dpop_loss(chosen, rejected, beta, penalty)
    if settings.loss == "tdpo1":
        return functools.partial(tdpo1_loss, beta=beta)
    if settings.loss == "tdpo2":
        alpha = TDPO_ALPHA if settings.tdpo_alpha is None else settings.tdpo_alpha
        return functools.partial(tdpo2_loss, beta=beta, alpha=alpha)
    return None


def _config(row: Method, entries: dict[str, Any], settings: PreferenceSettings) -> Any:
    """TRL's configuration: the entries, and those of `trl_kwargs`.

    Raises:
        ValueError, TypeError: it does not know an entry of `trl_kwargs`, or refuses its value.
    """
    config_class = trainers.CONFIGS[row.trainer]
    extra = named_values("trl_kwargs", settings.trl_kwargs)
    for name in extra:
        if name in entries:
            raise ValueError(f"trl_kwargs: {name} is set by the other options already.")
        if name not in {f.name for f in dataclasses.fields(config_class)}:
            raise ValueError(f"trl_kwargs: {config_class.__name__} has no {name!r}.")
    return config_class(**entries, **extra)


def check_trl_kwargs(settings: PreferenceSettings) -> None:
    """Checks `trl_kwargs` before anything is read or loaded.

    Raises:
        ValueError, TypeError: TRL's configuration does not know an entry, or refuses its value.
    """
    if settings.trl_kwargs:
        row = method(settings.loss)
        _config(row, _shared_entries(settings, row, records=1, width=WIDTH), settings)


def _dataset(rows: list[dict[str, Any]], folder: Path | None = None) -> Any:
    """A dataset in memory, or in a folder, where TRL keeps the reference's log-probs beside it."""
    from datasets import Dataset, load_from_disk

    if folder is None:
        return Dataset.from_list(rows)
    if not folder.is_dir():
        Dataset.from_list(rows).save_to_disk(folder)
    return load_from_disk(folder)
