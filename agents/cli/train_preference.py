r"""Trains a language model on preferences directly: DPO, DPOP, TDPO, ORPO, IPO, KTO, CPO, SimPO and more.

    python scripts/train_preference.py --preferences runs/preferences/rankings.jsonl --output-dir runs/dpo
    python scripts/train_preference.py --preferences pairs.jsonl --loss tdpo2 --model HuggingFaceTB/SmolLM2-135M \
        --lora-rank 16 --learning-rate 1e-4 --mixed-precision bf16 --output-dir runs/tdpo

Preferences are rankings, as collect_preferences.py writes them, or pairs with `prompt`, `chosen`, `rejected`; a ranking
of several responses makes all its pairs. --loss kto takes single responses too, `prompt`, `completion`, `label`.
Trains with TRL's trainers, and writes `actor/` for every other command,
`preference.json` and `preference.png`. Ctrl-C stops; --resume goes on at the newest checkpoint.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from agents.cli.arguments import parse_command_line, read_command_line
from agents.console import PlainConsole, attempt, print_left_out, print_samples
from agents.flat_settings import to_words
from agents.processes import first_rank, launch
from agents.supervised.settings import PreferenceSettings

console = PlainConsole()
Args = PreferenceSettings
"""The command's options."""


def run(settings: PreferenceSettings) -> int:
    """Trains and says how it went; returns the exit status."""
    from agents.supervised.preference.train import train_on_preferences  # imports torch, which --help need not wait for

    if settings.starts_processes:
        return attempt(settings.check, console)[1] or launch("train_preference", to_words(settings), settings.processes)
    if not first_rank():  # rank 0 speaks for all
        console.quiet = True
    report, status = attempt(lambda: train_on_preferences(settings, console), console)
    if report is None:
        return status
    held_out = report["heldout"]
    line = f"{report['loss']} ({report['source']}), beta {report['beta']:g}, "
    if "pairs" in report:
        line += f"{report['pairs']:,} pairs"
    else:
        line += f"{report['responses']:,} responses, {report['good_responses']:,} of them good"
    if "rewards/accuracies" in held_out:  # not of KTO, which looks at one response at a time
        accuracy = f"{held_out['rewards/accuracies']:.1%}"
        line += f": {accuracy} of {report['heldout_pairs']:,} held-out pairs in the right order"
    console.print(f"{line}.")
    print_left_out(report["left_out"], console)
    print_samples(report["samples"], console)
    console.print(
        f"Done. Model: {settings.output_dir / 'actor'}   numbers: {settings.output_dir / 'preference.json'}   "
        f"picture: {settings.output_dir / 'preference.png'}",
    )
    return 0


def check(argv: Sequence[str]) -> None:
    """Checks a command line without reading or writing anything else; see `agents.pipeline.commands.check_command`."""
    read_command_line(Args, argv).check_values()


def main(argv: Sequence[str]) -> int:
    """Reads the command line and runs it; returns the exit status."""
    return run(parse_command_line(Args, argv, __doc__))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
