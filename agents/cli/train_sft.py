r"""Supervised fine-tuning: teaches a language model to write responses like those in a file.

    python scripts/train_sft.py --texts runs/text/reviews.jsonl --output-dir runs/sft
    python scripts/train_sft.py --texts chats.jsonl --model HuggingFaceTB/SmolLM2-135M --lora-rank 16 --learning-rate 2e-4 \
        --output-dir runs/sft

A record has `prompt` and `response`, or `messages`, or plain `text` (.jsonl, .json, .csv, .parquet, a dataset id; .txt: a text
a line). Trains with TRL's SFTTrainer, and writes `actor/` for train.py's --model, `sft.json` with samples, and `sft.png`.
Ctrl-C stops; --resume goes on at the newest checkpoint.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from agents.cli.arguments import parse_command_line, read_command_line
from agents.console import PlainConsole, attempt, print_samples
from agents.flat_settings import to_words
from agents.processes import first_rank, launch
from agents.supervised.settings import SFTSettings

console = PlainConsole()
Args = SFTSettings
"""The command's options."""


def run(settings: SFTSettings) -> int:
    """Trains and says how it went; returns the exit status."""
    from agents.supervised.sft import fine_tune  # imports torch, which --help need not wait for

    if settings.starts_processes:
        return attempt(settings.check, console)[1] or launch("train_sft", to_words(settings), settings.processes)
    if not first_rank():  # rank 0 speaks for all
        console.quiet = True
    report, status = attempt(lambda: fine_tune(settings, console), console)
    if report is None:
        return status
    before, after = report["perplexity_before"], report["perplexity"]
    console.print(
        f"Perplexity of {report['heldout_texts']:,} held-out texts: {before:.2f} before, {after:.2f} after "
        f"{report['train_texts']:,} texts.",
    )
    print_samples(report["samples"], console)
    console.print(f"Done. Model: {settings.output_dir / 'actor'}   numbers: {settings.output_dir / 'sft.json'}")
    return 0


def check(argv: Sequence[str]) -> None:
    """Checks a command line without reading or writing anything else; see `agents.pipeline.commands.check_command`."""
    read_command_line(Args, argv).check_values()


def main(argv: Sequence[str]) -> int:
    """Reads the command line and runs it; returns the exit status."""
    return run(parse_command_line(Args, argv, __doc__))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
