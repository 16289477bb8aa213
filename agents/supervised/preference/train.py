"""Trains a causal LM on preferences with one of the methods in `METHODS`, and reports on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from rich.console import Console

from agents.distributed import ranks
from agents.figures import can_draw
from agents.files import write_json
from agents.preferences.labeled import Labeled, is_labeled
from agents.preferences.records import Ranking, prompt_key
from agents.preferences.selection import pairs_of
from agents.supervised.preference.build import check_trl_kwargs, make_trainer
from agents.supervised.preference.figure import draw
from agents.supervised.preference.methods import UNPAIRED, Method, method
from agents.supervised.preference.trainers import pair_rows, sides
from agents.supervised.rows import encode_labeled, encode_rankings, read_labeled_split, read_split
from agents.supervised.settings import PreferenceSettings
from agents.supervised.sft import sample_responses
from agents.supervised.trainer import in_processes, run_trainer, save_model, training_log
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
    if settings.starts_processes:
        return in_processes("train_preference", settings, "preference.json")
    settings.check()
    check_trl_kwargs(settings)
    row = method(settings.loss)
    data = _read(settings, row)
    name = settings.model or DEFAULT_MODEL
    tokenizer = load_tokenizer(name, "model", settings.trust_remote_code, settings.special_tokens_in_text)
    pairs, left_out = _encode(data.train, tokenizer, settings, row)
    held_out_pairs, _ = _encode(data.held_out, tokenizer, settings, row)
    for side, side_pairs in (("training", pairs), ("held-out", held_out_pairs)):
        if not side_pairs:
            raise ValueError(f"No {side} pair or response is left to learn from; left out: {left_out}.")

    with settings.writing():
        trainer = make_trainer(settings, tokenizer, pairs, held_out_pairs)
        trained = run_trainer(trainer, settings, console or Console(quiet=True))
        log = training_log(trainer)
        last_evaluation: dict[str, Any] = next((entry for entry in reversed(log) if "eval_loss" in entry), {})

        def result() -> dict[str, Any]:
            save_model(trained, tokenizer, settings.output_dir / "actor")  # first, whatever its samples come to
            report: dict[str, Any] = {
                "loss": settings.loss,
                "source": row.source,
                "beta": settings.beta or row.beta,
                "model": name,
                "reference": (settings.ref_model or name) if row.reference else None,
                **_counts(pairs, held_out_pairs, data),
                "left_out": left_out,
                "heldout": {k.removeprefix("eval_"): v for k, v in last_evaluation.items() if k.startswith("eval_")},
                "log": log,
                "samples": sample_responses(trained, tokenizer, _prompts(data.held_out), settings.n_samples),
            }
            write_json(settings.output_dir / "preference.json", report)
            if can_draw():
                draw(log, settings.output_dir / "preference.png", row.reference)
            return report

        report: dict[str, Any] = ranks().first_does(result)
        return report


class _Data(NamedTuple):
    """What is trained on, and what is held out: rankings or pairs, or all single responses with labels."""

    train: Sequence[Ranking] | Sequence[Labeled]
    held_out: Sequence[Ranking] | Sequence[Labeled]

    @property
    def in_pairs(self) -> bool:
        """Whether they are rankings or pairs."""
        return not isinstance(self.train[0], Labeled)


def _read(settings: PreferenceSettings, row: Method) -> _Data:
    """Reads the preferences.

    Raises:
        FileNotFoundError, ValueError: they cannot be read, or are single responses and the method takes pairs.
    """
    where = settings.preferences, settings.eval_preferences, settings.heldout_share, settings.seed
    if not is_labeled(settings.preferences):
        return _Data(*read_split(*where))
    if row.trainer != UNPAIRED:
        raise ValueError(
            f"preferences={settings.preferences!r} holds single responses with labels; loss={settings.loss!r} learns from "
            "pairs. Take --loss kto."
        )
    return _Data(*read_labeled_split(*where))


def _counts(rows: Sequence[Any], held_out: Sequence[Any], data: _Data) -> dict[str, int]:
    """How many pairs, or single responses, are learned and held out."""
    if not data.in_pairs:
        good = sum(row["label"] for row in rows)
        return {"responses": len(rows), "good_responses": good, "heldout_responses": len(held_out)}
    each = 2 if rows and "label" in rows[0] else 1  # KTO's rows are the sides of pairs
    return {"pairs": len(rows) // each, "heldout_pairs": len(held_out) // each}


def _encode(
    records: Sequence[Ranking] | Sequence[Labeled], tokenizer: Any, settings: PreferenceSettings, row: Method
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Encoded pairs as `pair_rows` makes them, for KTO single responses; and how many records were left out, by reason."""
    labeled = [one for one in records if isinstance(one, Labeled)]
    if labeled:
        return encode_labeled(labeled, tokenizer, settings.max_length, settings.max_prompt_length)
    rankings = [one for one in records if isinstance(one, Ranking)]
    if settings.pairs != "all":
        rankings = pairs_of(rankings, settings.pairs)
    rows, left_out = encode_rankings(
        rankings, tokenizer, settings.max_length, in_pairs=True, max_prompt_length=settings.max_prompt_length
    )
    pairs = pair_rows(rows)
    return (sides(pairs) if row.trainer == UNPAIRED else pairs), left_out


def _prompts(records: Sequence[Ranking] | Sequence[Labeled]) -> list[TextRecord]:
    """The prompts of preferences, each once, as records for `sample_responses`."""
    prompts = [one.prompt if isinstance(one, Labeled) else one.candidates.prompt for one in records]
    return list({prompt_key(p): TextRecord(p, " ") for p in prompts}.values())
