"""Trains a causal LM on preferences with one of the methods in `METHODS`, and reports on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console

from agents.figures import can_draw
from agents.files import write_json
from agents.preferences.records import Ranking, prompt_key
from agents.preferences.selection import pairs_of
from agents.supervised.preference.build import check_trl_kwargs, make_trainer
from agents.supervised.preference.figure import draw
from agents.supervised.preference.methods import method
from agents.supervised.preference.trainers import pair_rows
from agents.supervised.rows import encode_rankings, read_split
from agents.supervised.settings import PreferenceSettings
from agents.supervised.sft import sample_responses
from agents.supervised.trainer import run_trainer, save_model, training_log
from llm_env.default_task import DEFAULT_MODEL
from llm_env.lm.loading import load_tokenizer
from llm_env.text.texts import TextRecord


def train_on_preferences(settings: PreferenceSettings, console: Console | None = None) -> dict[str, Any]:
    """Trains, and writes ``actor/``, ``preference.json`` and ``preference.png`` to the output folder.

    Args:
        settings: The preferences, the model, the method, and how to train.
        console: Where progress is printed; None: nowhere.

    Returns:
        What ``preference.json`` holds: held-out accuracy of the implicit reward and its parts, the log, samples.

    Raises:
        FileNotFoundError, FileExistsError, ValueError: something cannot be read, or a setting breaks its rule; of a bad
            record, file and line are named.
    """
    settings.check()
    check_trl_kwargs(settings)
    row = method(settings.loss)
    train, held_out = read_split(settings.preferences, settings.eval_preferences, settings.heldout_share, settings.seed)
    name = settings.model or DEFAULT_MODEL
    tokenizer = load_tokenizer(name, "model", settings.trust_remote_code, settings.special_tokens_in_text)
    pairs, left_out = _encode(train, tokenizer, settings)
    held_out_pairs, _ = _encode(held_out, tokenizer, settings)
    for side, side_pairs in (("training", pairs), ("held-out", held_out_pairs)):
        if not side_pairs:
            raise ValueError(f"No {side} pair is left to learn from; left out: {left_out}.")

    with settings.writing():
        trainer = make_trainer(settings, tokenizer, pairs, held_out_pairs)
        trained = run_trainer(trainer, settings, console or Console(quiet=True))
        log = training_log(trainer)
        last_evaluation: dict[str, Any] = next((entry for entry in reversed(log) if "eval_loss" in entry), {})
        report: dict[str, Any] = {
            "loss": settings.loss,
            "source": row.source,
            "beta": settings.beta or row.beta,
            "model": name,
            "reference": (settings.ref_model or name) if row.reference else None,
            "pairs": len(pairs),
            "heldout_pairs": len(held_out_pairs),
            "left_out": left_out,
            "heldout": {k.removeprefix("eval_"): v for k, v in last_evaluation.items() if k.startswith("eval_")},
            "log": log,
            "samples": sample_responses(trained, tokenizer, _prompts(held_out), settings.n_samples),
        }
        save_model(trained, tokenizer, settings.output_dir / "actor")
        write_json(settings.output_dir / "preference.json", report)
        if can_draw():
            draw(log, settings.output_dir / "preference.png", row.reference)
        return report


def _encode(
    rankings: Sequence[Ranking], tokenizer: Any, settings: PreferenceSettings
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Encoded pairs as `pair_rows` makes them, and how many records were left out, by reason."""
    if settings.pairs != "all":
        rankings = pairs_of(rankings, settings.pairs)
    rows, left_out = encode_rankings(
        rankings, tokenizer, settings.max_length, in_pairs=True, max_prompt_length=settings.max_prompt_length
    )
    return pair_rows(rows), left_out


def _prompts(rankings: Sequence[Ranking]) -> list[TextRecord]:
    """The prompts of rankings, each once, as records for `sample_responses`."""
    return list({prompt_key(p): TextRecord(p, " ") for p in (r.candidates.prompt for r in rankings)}.values())
