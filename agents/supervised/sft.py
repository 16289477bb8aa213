"""Supervised fine-tuning with TRL's `SFTTrainer`, on texts encoded as the environment encodes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from agents.figures import can_draw
from agents.policies.actor import adapter_config
from agents.supervised.trainer import TrainerSettings, quiet_trainer, run_trainer
from llm_env.default_task import DEFAULT_MODEL
from llm_env.extras import require
from llm_env.lm.causal_lm import CausalLM, end_token_ids
from llm_env.lm.loading import load_config, load_tokenizer, load_weights, quiet_loading
from llm_env.lm.names import LoadSettings
from llm_env.lm.perplexity import perplexity
from llm_env.lm.registry import SharedLM
from llm_env.text.split import split_indices
from llm_env.text.texts import EncodedText, TextRecord, encode_text, read_texts


def fine_tune(
    settings: TrainerSettings,
    texts: str,
    heldout_texts: str | None = None,
    response_only: bool = True,
    from_scratch: bool = False,
    max_length: int = 256,
    n_samples: int = 8,
    console: Console | None = None,
) -> dict[str, Any]:
    """Trains a causal LM on texts, and writes ``actor/``, ``sft.json`` and ``sft.png``.

    Args:
        settings: Model, folder and the trainer's numbers.
        texts: See `llm_env.text.texts`.
        heldout_texts: Texts to evaluate on; None: a share of the others.
        response_only: No loss on prompts.
        from_scratch: New weights in the model's architecture.
        max_length: In tokens; longer texts are cut on the right.
        console: Where progress is printed; None: nowhere.
        n_samples: Held-out prompts that are responded to in the end.

    Returns:
        What ``sft.json`` holds: perplexities of held-out text before and after, the log, samples.

    Raises:
        FileNotFoundError, FileExistsError, ValueError: something cannot be read, or a setting breaks its rule.
    """
    require("trl", "supervised")
    from datasets import Dataset, disable_progress_bars
    from trl import SFTConfig, SFTTrainer

    settings.check()
    console = console or Console(quiet=True)
    if max_length < 2:
        raise ValueError(f"max_length={max_length} must be at least 2 tokens.")
    name = settings.model or DEFAULT_MODEL
    tokenizer = load_tokenizer(name, trust_remote_code=settings.trust_remote_code)
    records = read_texts(texts)
    train, held_out = _split(records, None if heldout_texts is None else read_texts(heldout_texts), settings)
    encoded = [cut(encode_text(r, tokenizer), max_length) for r in train]
    encoded_held_out = [cut(encode_text(r, tokenizer), max_length) for r in held_out]
    for what, some in (("texts", encoded), ("held-out texts", encoded_held_out)):
        if not any(t.start < len(t.ids) for t in some):
            raise ValueError(f"No token is left to learn of the {what}: raise max_length={max_length}.")

    model = load_model(name, settings, from_scratch)
    before = text_perplexity(model, tokenizer, encoded_held_out)
    quiet_trainer()
    disable_progress_bars()
    rows = [_row(t) for t in encoded if t.start < len(t.ids)]
    config = SFTConfig(
        **settings.trainer_arguments(len(rows)),
        completion_only_loss=response_only,
        max_length=None,
        packing=False,
    )
    trainer = SFTTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list([_row(t) for t in encoded_held_out if t.start < len(t.ids)]),
        processing_class=tokenizer,
        peft_config=adapter_config(model, settings.lora_rank) if settings.lora_rank else None,
    )
    trained = run_trainer(trainer, settings, console)
    report: dict[str, Any] = {
        "model": name,
        "train_texts": len(encoded),
        "heldout_texts": len(encoded_held_out),
        "response_only": response_only,
        "perplexity_before": before,
        "perplexity": text_perplexity(trained, tokenizer, encoded_held_out),
        "log": trainer.state.log_history,
        "samples": sample_responses(trained, tokenizer, [r for r in held_out if r.prompt is not None], n_samples),
    }
    with quiet_loading():
        trained.save_pretrained(settings.output_dir / "actor")
    tokenizer.save_pretrained(settings.output_dir / "actor")
    path = settings.output_dir / "sft.json"
    path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if can_draw():
        draw_losses(report["log"], settings.output_dir / "sft.png")
    return report


def _split(
    records: list[TextRecord], held_out: list[TextRecord] | None, settings: TrainerSettings
) -> tuple[list[TextRecord], list[TextRecord]]:
    if held_out is not None:
        return records, held_out
    train, test = split_indices(len(records), settings.heldout_share, settings.seed)
    if not train:
        raise ValueError(f"texts: {len(records)} is too few to hold some out. Give more, or give --heldout-texts.")
    return [records[i] for i in train], [records[i] for i in test]


def cut(text: EncodedText, max_length: int) -> EncodedText:
    """The first tokens of a text."""
    return EncodedText(text.ids[:max_length], text.start)


def _row(text: EncodedText) -> dict[str, list[int]]:
    mask = [int(i >= text.start) for i in range(len(text.ids))]
    return {"input_ids": text.ids, "completion_mask": mask}


def load_model(name: str, settings: TrainerSettings, from_scratch: bool) -> Any:
    """The model to train, on the CPU in float32; with `from_scratch`, its architecture with new weights."""
    if not from_scratch:
        load = LoadSettings("float32", "cpu", settings.trust_remote_code)
        return load_weights(AutoModelForCausalLM, name, "causal language model", "model", load)
    config = load_config(name, "causal language model", "model", settings.trust_remote_code)
    torch.manual_seed(settings.seed)
    return AutoModelForCausalLM.from_config(config, trust_remote_code=settings.trust_remote_code)


def text_perplexity(model: Any, tokenizer: PreTrainedTokenizerBase, texts: list[EncodedText]) -> float:
    """Perplexity of the texts' learned tokens; the model is left in the mode it was in."""
    was_training = model.training
    model.eval()
    found = perplexity(SharedLM(CausalLM(model, "model"), tokenizer, frozenset(), LoadSettings()), texts)
    model.train(was_training)
    return found


def sample_responses(
    model: Any, tokenizer: PreTrainedTokenizerBase, records: list[TextRecord], count: int
) -> list[dict[str, str]]:
    """Sampled responses to the prompts of the first records."""
    from llm_env.lm.generate import continue_prompts
    from llm_env.text.prompts import encode_prompt

    prompts = [encode_prompt(r.prompt, tokenizer, 10**6)[0] for r in records[:count] if r.prompt is not None]
    lm = CausalLM(model, "model")
    ids = continue_prompts(lm, prompts, end_token_ids(model, tokenizer, "model"), max_new_tokens=64, seed=0)
    return [
        {"prompt": p.text, "response": str(tokenizer.decode(r, skip_special_tokens=True))}
        for p, r in zip(prompts, ids, strict=True)
    ]


def draw_losses(log: list[dict[str, Any]], path: Path) -> None:
    """Training and held-out loss over the steps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, label in (("loss", "training"), ("eval_loss", "held out")):
        points = [(entry["step"], entry[name]) for entry in log if name in entry]
        if points:
            axes.plot(*zip(*points, strict=True), marker="." if name == "eval_loss" else "", label=label)
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)
