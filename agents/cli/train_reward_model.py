r"""Trains a reward model on preferences: Bradley-Terry, K-wise or Plackett-Luce; or on stars.

    python scripts/train_reward_model.py --preferences runs/preferences/rankings.jsonl --output-dir runs/reward
    python scripts/train_reward_model.py --preferences pairs.jsonl --model HuggingFaceTB/SmolLM2-135M --loss bradley_terry \
        --learning-rate 2e-5 --batch-size 16 --freeze-layers 15 --output-dir runs/reward

Preferences are rankings, as collect_preferences.py writes them, pairs with `prompt`, `chosen`, `rejected`, or stars with
`prompt`, `response`, `stars` (docs/feedback.md), which --loss ordinal and regression learn themselves. Trains with TRL's
RewardTrainer, and writes `reward_model/` for train.py's --reward-model, with scores of mean 0 and variance 1 on the training
responses, and a report: report.json, report.png, mistakes.md. Ctrl-C stops; --resume goes on at the newest checkpoint.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from agents.cli.arguments import parse_command_line, read_command_line
from agents.console import PlainConsole, attempt, print_left_out
from agents.flat_settings import to_words
from agents.processes import first_rank, launch
from agents.supervised.settings import RewardSettings

console = PlainConsole()
Args = RewardSettings
"""The command's options."""


def run(settings: RewardSettings) -> int:
    """Trains and says how it went; returns the exit status."""
    from agents.supervised.reward_model.train import train_reward_model  # imports torch, which --help need not wait for

    if settings.starts_processes:
        return attempt(settings.check, console)[1] or launch(
            "train_reward_model", to_words(settings), settings.processes
        )
    if not first_rank():  # rank 0 speaks for all
        console.quiet = True
    report, status = attempt(lambda: train_reward_model(settings, console), console)
    if report is None:
        return status
    if report["pairs"]:
        low, high = report["accuracy_interval"]
        console.print(
            f"Held-out accuracy {report['accuracy']:.1%} ({low:.1%} to {high:.1%}) on {report['pairs']:,} pairs of "
            f"{report['rankings']:,} rankings; always the longer: {report['longer_is_better']:.1%}.",
        )
    if "stars" in report:
        print_stars(report["stars"])
    for kind, of in report.get("hacks", {}).items():
        resisted = of["resisted"]
        console.print(
            f"Hacks, {kind}: {resisted['share']:.1%} of {resisted['of']:,} held-out ones score below the response."
        )
    if "gold_accuracy" in report:
        console.print(
            f"Of the gold order: {report['gold_accuracy']:.1%}; the annotators: {report['annotator_gold_accuracy']:.1%}.",
        )
    print_left_out(report["left_out"], console)
    console.print(
        f"Done. Model: {settings.output_dir / 'reward_model'}   report: {settings.output_dir / 'report.png'}, "
        f"{settings.output_dir / 'mistakes.md'}",
    )
    return 0


def print_stars(stars: dict[str, Any]) -> None:
    """Prints how scores go with held-out stars."""
    text = (
        f"Stars of {stars['responses']:,} held-out responses: correlation {stars['correlation']:.2f}, "
        f"{stars['concordance']:.1%} of pairs in order"
    )
    if "mean_error" in stars:
        text += f"; expected stars are off by {stars['mean_error']:.2f}, always the mean by {stars['mean_error_of_mean']:.2f}"
    console.print(f"{text}.")


def check(argv: Sequence[str]) -> None:
    """Checks a command line without reading or writing anything else; see `agents.pipeline.commands.check_command`."""
    read_command_line(Args, argv).check_values()


def main(argv: Sequence[str]) -> int:
    """Reads the command line and runs it; returns the exit status."""
    return run(parse_command_line(Args, argv, __doc__))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
