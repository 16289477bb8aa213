r"""Trains a language model on preferences directly: DPO, DPOP, TDPO, ORPO, IPO, KTO, CPO, SimPO and more.

    python scripts/train_preference.py --preferences runs/preferences/rankings.jsonl --output-dir runs/dpo
    python scripts/train_preference.py --preferences pairs.jsonl --loss tdpo2 --model HuggingFaceTB/SmolLM2-135M \
        --lora-rank 16 --learning-rate 1e-4 --mixed-precision bf16 --output-dir runs/tdpo

Preferences are rankings, as collect_preferences.py writes them, or pairs with `prompt`, `chosen`, `rejected`; a ranking
of several responses makes all its pairs. Trains with TRL's trainers; leaves `actor/` for evaluate.py and every other script,
`preference.json` and `preference.png`. Ctrl-C stops; --resume goes on at the newest checkpoint.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from agents.console import attempt, parse_command_line, print_left_out, print_samples
from agents.supervised.preference.train import PreferenceSettings

console = Console(soft_wrap=True)


@dataclass(frozen=True, kw_only=True)
class Args(PreferenceSettings):
    """Train on preferences."""


def train(args: Args) -> dict[str, Any]:
    """Trains; returns the report."""
    from agents.supervised.preference.train import optimise

    return optimise(args, console)


def run(args: Args) -> int:
    """Trains; returns the exit status."""
    report, status = attempt(lambda: train(args), console)
    if report is None:
        return status
    held_out = report["heldout"]
    accuracy = held_out.get("rewards/accuracies", float("nan"))
    console.print(
        f"{report['loss']} ({report['source']}), beta {report['beta']:g}, {report['pairs']:,} pairs: "
        f"{accuracy:.1%} of {report['heldout_pairs']:,} held-out pairs in the right order.",
        highlight=False,
    )
    print_left_out(report["left_out"], console)
    print_samples(report["samples"], console)
    console.print(
        f"Done. Model: {args.output_dir / 'actor'}   numbers: {args.output_dir / 'preference.json'}   "
        f"picture: {args.output_dir / 'preference.png'}",
        highlight=False,
    )
    return 0


def main(argv: Sequence[str]) -> int:
    """Reads the command line and runs it; returns the exit status."""
    return run(parse_command_line(Args, argv, __doc__))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
