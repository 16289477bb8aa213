r"""Trains a reward model on preferences: Bradley-Terry, K-wise or Plackett-Luce.

    python scripts/train_reward_model.py --preferences runs/preferences/rankings.jsonl --output-dir runs/reward
    python scripts/train_reward_model.py --preferences pairs.jsonl --model HuggingFaceTB/SmolLM2-135M --loss bradley_terry \
        --learning-rate 2e-5 --batch-size 16 --freeze-layers 15 --output-dir runs/reward

Preferences are rankings, as collect_preferences.py writes them, or pairs with `prompt`, `chosen`, `rejected`. Trains with TRL's
RewardTrainer; leaves `reward_model/` for train.py's --reward-model, with scores of mean 0 and variance 1 on the training
responses, and a report: report.json, report.png, mistakes.md. Ctrl-C stops; --resume goes on at the newest checkpoint.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from agents.console import attempt, parse_command_line, print_left_out
from agents.supervised.trainer import TrainerSettings

console = Console(soft_wrap=True)


@dataclass(frozen=True, kw_only=True)
class Args(TrainerSettings):
    """Train a reward model."""

    preferences: str
    """File of rankings or pairs (.jsonl, .csv, .parquet), or a dataset id."""
    eval_preferences: str | None = None
    """Held-out ones, of other prompts. Default: those of a share of the prompts."""
    loss: str = "k_wise"
    """bradley_terry: each pair an element of a batch (Stiennon et al. 2020). k_wise: all pairs of a prompt in one, each
    response read once (InstructGPT). plackett_luce: the likelihood of the whole ranking."""
    margins: str = "none"
    """none; given: the records' margin; rank: how many places lie between two responses (Llama 2)."""
    margin_scale: float = 1.0
    """Factor of the margins."""
    centring: float = 0.0
    """Coefficient of a term that keeps scores around 0 (Eisenstein et al. 2023)."""
    label_smoothing: float = 0.0
    """Share of pairs that are taken to be labelled the wrong way round (Wang et al. 2024)."""
    max_length: int = 512
    """Tokens of prompt and response."""
    freeze_layers: int = 0
    """Lower layers that stay as they are, with the embedding."""
    dropout: float = 0.0
    """Dropout while training; off in what is written."""
    early_stopping: int = 0
    """Stop after that many evaluations without a better held-out accuracy, and keep the best; 0: train to the end."""
    heads: tuple[str, ...] = ()
    """Aspects with a head of their own: helpful polite … A ranking's `aspect` says which it is for; one without
    it trains their sum."""
    head_weights: tuple[float, ...] = ()
    """How much each head counts. Default: all the same."""
    gate: bool = False
    """Learn from the prompt how much each head counts."""
    gold: str | None = None
    """package.module:function that knows better than the annotators; only reported."""
    normalise_on: str | None = None
    """File of rankings whose responses are to score mean 0, variance 1. Default: the training preferences."""


def train(args: Args) -> dict[str, Any]:
    """Trains; returns the report."""
    from agents.supervised.reward_model.train import RewardSettings, train_reward_model
    from agents.supervised.reward_model.trainer import RankingLoss

    own = RewardSettings(
        preferences=args.preferences,
        eval_preferences=args.eval_preferences,
        loss=RankingLoss(args.loss, args.margins, args.margin_scale, args.centring, args.label_smoothing),
        max_length=args.max_length,
        freeze_layers=args.freeze_layers,
        dropout=args.dropout,
        early_stopping=args.early_stopping,
        heads=args.heads,
        head_weights=args.head_weights,
        gate=args.gate,
        gold=args.gold,
        normalise_on=args.normalise_on,
    )
    return train_reward_model(args, own, console)


def run(args: Args) -> int:
    """Trains and reports; returns the exit status."""
    report, status = attempt(lambda: train(args), console)
    if report is None:
        return status
    low, high = report["accuracy_interval"]
    console.print(
        f"Held-out accuracy {report['accuracy']:.1%} ({low:.1%} to {high:.1%}) on {report['pairs']:,} pairs of "
        f"{report['rankings']:,} rankings; always the longer: {report['longer_is_better']:.1%}.",
        highlight=False,
    )
    if "gold_accuracy" in report:
        console.print(
            f"Of the gold order: {report['gold_accuracy']:.1%}; the annotators: {report['annotator_gold_accuracy']:.1%}.",
            highlight=False,
        )
    print_left_out(report["left_out"], console)
    console.print(
        f"Done. Model: {args.output_dir / 'reward_model'}   report: {args.output_dir / 'report.png'}, "
        f"{args.output_dir / 'mistakes.md'}",
        highlight=False,
    )
    return 0


def main(argv: Sequence[str]) -> int:
    """Reads the command line and runs it; returns the exit status."""
    return run(parse_command_line(Args, argv, __doc__))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
