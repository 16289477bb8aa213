r"""Supervised fine-tuning: teaches a language model to write responses like those in a file.

    python scripts/train_sft.py --texts runs/text/reviews.jsonl --output-dir runs/sft
    python scripts/train_sft.py --texts chats.jsonl --model HuggingFaceTB/SmolLM2-135M --lora-rank 16 --learning-rate 2e-4 \
        --output-dir runs/sft

A record has `prompt` and `response`, or `messages`, or plain `text` (.jsonl, .csv, .parquet, a dataset id; .txt: a text a
line). Trains with TRL's SFTTrainer; leaves `actor/` for train.py's --model, `sft.json`, `sft.png` and samples.
Ctrl-C stops; --resume goes on at the newest checkpoint.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from agents.console import attempt, parse_command_line, print_samples
from agents.supervised.trainer import TrainerSettings

console = Console(soft_wrap=True)


@dataclass(frozen=True, kw_only=True)
class Args(TrainerSettings):
    """Fine-tune on texts."""

    texts: str
    """File or dataset of texts to learn."""
    heldout_texts: str | None = None
    """File of texts to evaluate on. Default: a share of the others."""
    response_only: bool = True
    """The loss is on responses only, not on their prompts."""
    from_scratch: bool = False
    """Keep the model's architecture and tokenizer, and start from new weights."""
    max_length: int = 256
    """Tokens; longer texts are cut."""
    n_samples: int = 8
    """Held-out prompts to respond to in the end."""


def train(args: Args) -> dict[str, Any]:
    """Trains; returns the report."""
    from agents.supervised.sft import fine_tune

    return fine_tune(
        args,
        args.texts,
        args.heldout_texts,
        args.response_only,
        args.from_scratch,
        args.max_length,
        args.n_samples,
        console,
    )


def run(args: Args) -> int:
    """Trains; returns the exit status."""
    report, status = attempt(lambda: train(args), console)
    if report is None:
        return status
    before, after = report["perplexity_before"], report["perplexity"]
    console.print(
        f"Perplexity of {report['heldout_texts']:,} held-out texts: {before:.2f} before, {after:.2f} after "
        f"{report['train_texts']:,} texts.",
        highlight=False,
    )
    print_samples(report["samples"], console)
    console.print(
        f"Done. Model: {args.output_dir / 'actor'}   numbers: {args.output_dir / 'sft.json'}", highlight=False
    )
    return 0


def main(argv: Sequence[str]) -> int:
    """Reads the command line and runs it; returns the exit status."""
    return run(parse_command_line(Args, argv, __doc__))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
