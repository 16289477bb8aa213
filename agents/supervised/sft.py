"""Supervised fine-tuning with TRL's `SFTTrainer`, on texts encoded as the environment encodes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from agents.distributed import ranks
from agents.figures import DPI, can_draw, new_figure
from agents.files import write_json
from agents.policies.actor import adapter_config
from agents.supervised.settings import SFTSettings, TrainerSettings
from agents.supervised.trainer import (
    in_processes,
    model_width,
    quiet_trainer,
    run_trainer,
    save_model,
    trainer_arguments,
    training_log,
)
from llm_env.default_task import DEFAULT_MODEL
from llm_env.lm.causal_lm import CausalLM, end_token_ids
from llm_env.lm.generate import continue_prompts, prompt_room
from llm_env.lm.loading import load_config, load_tokenizer, load_weights
from llm_env.lm.names import LoadSettings
from llm_env.lm.perplexity import perplexity
from llm_env.lm.registry import SharedLM
from llm_env.reward.classifier import LIMITLESS
from llm_env.text.prompts import encode_prompt
from llm_env.text.split import split_indices
from llm_env.text.texts import EncodedText, TextRecord, encode_text, read_texts

SAMPLE_TOKENS = 64
"""Length cap of the responses that a report shows."""


def fine_tune(settings: SFTSettings, console: Console | None = None) -> dict[str, Any]:
    """Trains a causal LM on texts, and writes ``actor/``, ``sft.json`` and ``sft.png`` to the output folder.

    Args:
        settings: The texts, the model, and how to train.
        console: Where progress is printed; None: nowhere.

    Returns:
        What ``sft.json`` holds: perplexities of held-out text before and after, the log, samples.

    Raises:
        FileNotFoundError, FileExistsError, ValueError: something cannot be read, or a setting breaks its rule.
    """
    if settings.starts_processes:
        return in_processes("train_sft", settings, "sft.json")
    settings.check()
    name = settings.model or DEFAULT_MODEL
    tokenizer = load_tokenizer(name, "model", settings.trust_remote_code, settings.special_tokens_in_text)
    train, held_out = _read_split(settings)
    encoded = _encode(train, tokenizer, settings.max_length, "texts")
    encoded_held_out = _encode(held_out, tokenizer, settings.max_length, "held-out texts")

    with settings.writing():
        model = load_model(name, settings, settings.from_scratch)
        before = ranks().first_does(lambda: text_perplexity(model, tokenizer, encoded_held_out))
        trainer = _make_trainer(settings, model, tokenizer, encoded, encoded_held_out)
        trained = run_trainer(trainer, settings, console or Console(quiet=True))

        def result() -> dict[str, Any]:
            save_model(trained, tokenizer, settings.output_dir / "actor")  # first, whatever its evaluation comes to
            prompted = [r for r in held_out if r.prompt is not None]
            report: dict[str, Any] = {
                "model": name,
                "train_texts": len(encoded),
                "heldout_texts": len(encoded_held_out),
                "response_only": settings.response_only,
                "perplexity_before": before,
                "perplexity": text_perplexity(trained, tokenizer, encoded_held_out),
                "log": training_log(trainer),
                "samples": sample_responses(trained, tokenizer, prompted, settings.n_samples),
            }
            write_json(settings.output_dir / "sft.json", report)
            if can_draw():
                draw_losses(report["log"], settings.output_dir / "sft.png")
            return report

        report: dict[str, Any] = ranks().first_does(result)
        return report


def _make_trainer(
    settings: SFTSettings,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[EncodedText],
    held_out: Sequence[EncodedText],
) -> Any:
    """TRL's trainer on texts that are encoded already; texts of which nothing is learned are left out."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    quiet_trainer()
    rows, held_out_rows = ([_row(t) for t in side if t.start < len(t.ids)] for side in (texts, held_out))
    config = SFTConfig(
        **trainer_arguments(settings, len(rows), model_width(model)),
        completion_only_loss=settings.response_only,
        max_length=None,  # the texts are cut already
        packing=False,
    )
    return SFTTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(held_out_rows),
        processing_class=tokenizer,
        peft_config=adapter_config(model, settings.lora_rank) if settings.lora_rank else None,
    )


def _read_split(settings: SFTSettings) -> tuple[list[TextRecord], list[TextRecord]]:
    """Texts to learn and held-out ones: those of two files, or a file's with a share held out."""
    records = read_texts(settings.texts)
    if settings.heldout_texts is not None:
        return records, read_texts(settings.heldout_texts, "heldout_texts")
    train, test = split_indices(len(records), settings.heldout_share, settings.seed)
    if not train:
        raise ValueError(f"texts: {len(records)} is too few to hold some out. Give more, or give --heldout-texts.")
    return [records[i] for i in train], [records[i] for i in test]


def _encode(
    records: Sequence[TextRecord], tokenizer: PreTrainedTokenizerBase, max_length: int, description: str
) -> list[EncodedText]:
    """Texts as ids, cut to `max_length` tokens; an error names them by `description` where nothing is left to learn."""
    encoded = [cut(encode_text(r, tokenizer), max_length) for r in records]
    if not any(t.start < len(t.ids) for t in encoded):
        raise ValueError(f"No token is left to learn of the {description}: raise max_length={max_length}.")
    return encoded


def cut(text: EncodedText, max_length: int) -> EncodedText:
    """A text's first `max_length` tokens."""
    return EncodedText(text.ids[:max_length], text.start)


def _row(text: EncodedText) -> dict[str, list[int]]:
    """A row as `SFTTrainer`'s collator takes it; the mask is 1 where a token is part of the response."""
    mask = [int(i >= text.start) for i in range(len(text.ids))]
    return {"input_ids": text.ids, "completion_mask": mask}


def load_model(name: str, settings: TrainerSettings, from_scratch: bool = False, option: str = "model") -> Any:
    """Loads the causal LM to train, on the CPU in float32.

    Args:
        name: Folder or hub id.
        settings: Says whether a repository's code may run, and the seed of new weights.
        from_scratch: Take the architecture only, with new weights.
        option: The option that the name came from, for error messages.

    Raises:
        FileNotFoundError, ValueError: it cannot be loaded.
    """
    if not from_scratch:
        load = LoadSettings("float32", "cpu", settings.trust_remote_code)
        return load_weights(AutoModelForCausalLM, name, "causal language model", option, load)
    config = load_config(name, "causal language model", option, settings.trust_remote_code)
    torch.manual_seed(settings.seed)
    return AutoModelForCausalLM.from_config(config, trust_remote_code=settings.trust_remote_code)


def text_perplexity(model: Any, tokenizer: PreTrainedTokenizerBase, texts: list[EncodedText]) -> float:
    """Computes exp of the mean negative log-prob of the tokens that are learned; the model stays in the mode it was in."""
    was_training = model.training
    model.eval()
    value = perplexity(SharedLM(CausalLM(model, "model"), tokenizer, frozenset(), LoadSettings()), texts)
    model.train(was_training)
    return value


def sample_responses(
    model: Any, tokenizer: PreTrainedTokenizerBase, records: Sequence[TextRecord], count: int
) -> list[dict[str, str]]:
    """Samples a response to each of the first `count` records' prompts, always with the same seed.

    Args:
        model: The causal LM that responds, on its device, in eval mode.
        tokenizer: The model's tokenizer.
        records: Records whose prompts are responded to; those among the first `count` without a prompt are passed over.
        count: How many records to look at.

    Returns:
        For each prompt the texts ``prompt`` and ``response``.
    """
    lm = CausalLM(model, "model")
    new_tokens = min(SAMPLE_TOKENS, (lm.max_positions or LIMITLESS) // 2)
    room = prompt_room(lm, LIMITLESS, new_tokens)  # prompts are cut only where the model could not read them
    prompts = [encode_prompt(r.prompt, tokenizer, room)[0] for r in records[:count] if r.prompt is not None]
    ends = end_token_ids(model, tokenizer, "model")
    responses = continue_prompts(lm, prompts, ends, max_new_tokens=new_tokens, seed=0)
    return [
        {"prompt": p.text, "response": str(tokenizer.decode(ids, skip_special_tokens=True))}
        for p, ids in zip(prompts, responses, strict=True)
    ]


def draw_losses(log: list[dict[str, Any]], path: Path) -> None:
    """Draws training and held-out loss over the steps.

    Args:
        log: `Trainer`'s log, entries with ``step`` and ``loss`` or ``eval_loss`` in nats per token.
        path: Picture to write.
    """
    figure = new_figure(6, 3.6)
    axes = figure.add_subplot()
    for name, label in (("loss", "training"), ("eval_loss", "held out")):
        points = [(entry["step"], entry[name]) for entry in log if name in entry]
        if points:
            axes.plot(*zip(*points, strict=True), marker="." if name == "eval_loss" else "", label=label)
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=DPI)
