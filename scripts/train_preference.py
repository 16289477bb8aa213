r"""Trains a language model on preferences directly: DPO, DPOP, TDPO, ORPO, IPO, KTO, CPO, SimPO and more.

    python scripts/train_preference.py --preferences runs/preferences/rankings.jsonl --output-dir runs/dpo
    python scripts/train_preference.py --preferences pairs.jsonl --loss tdpo2 --model HuggingFaceTB/SmolLM2-135M \
        --lora-rank 16 --learning-rate 1e-4 --mixed-precision bf16 --output-dir runs/tdpo

Preferences are rankings, as collect_preferences.py writes them, or pairs with `prompt`, `chosen`, `rejected`; a ranking
of several responses makes all its pairs. Trains with TRL's trainers; leaves `actor/` for evaluate.py and every other script,
`preference.json` and `preference.png`. Ctrl-C stops; --resume True goes on at the newest checkpoint.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import tyro
from rich.console import Console
from rich.markup import escape

from agents.preference_optimisation.train import PreferenceSettings
from agents.terminal import plain_warnings, print_error

console = Console(soft_wrap=True)


@dataclass(frozen=True, kw_only=True)
class Args(PreferenceSettings):
    """Train on preferences."""


def main(args: Args) -> int:
    """Trains; returns the exit status."""
    plain_warnings(console)
    try:
        from agents.preference_optimisation.train import optimise

        report = optimise(args, console)
    except KeyboardInterrupt:
        console.print("Stopped. Go on with the same command and --resume True", highlight=False)
        return 130
    except (ValueError, TypeError, OSError) as error:
        print_error(error)
        return 1
    held_out = report["heldout"]
    accuracy = held_out.get("rewards/accuracies", float("nan"))
    console.print(
        f"{report['loss']} ({report['source']}), beta {report['beta']:g}, {report['pairs']:,} pairs: "
        f"{accuracy:.1%} of {report['heldout_pairs']:,} held-out pairs in the right order.",
        highlight=False,
    )
    noted = ", ".join(f"{count} {reason}" for reason, count in report["left_out"].items() if count)
    if noted:
        console.print(f"Training records, noted: {noted}.", highlight=False)
    for sample in report["samples"]:
        console.print(f"[dim]{escape(sample['prompt'])}[/dim]{escape(sample['response'])}", highlight=False)
    console.print(
        f"Done. Model: {args.output_dir / 'actor'}   numbers: {args.output_dir / 'preference.json'}   "
        f"picture: {args.output_dir / 'preference.png'}",
        highlight=False,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args, description=__doc__, config=(tyro.conf.FlagConversionOff,))))
