r"""Rounds of generating, ranking and training: iterated DPO, online DPO, rejection sampling (RAFT), iterated RLHF.

    python scripts/iterate.py --output-dir runs/iterated-dpo                                       three rounds of DPO
    python scripts/iterate.py --method rejection_sampling --n-responses 8 --output-dir runs/raft
    python scripts/iterate.py --method dpo --rounds 40 --prompts-per-round 64 --n-responses 2 --lr-schedule constant \
        --evaluate-every 10 --output-dir runs/online-dpo                                           online DPO
    python scripts/iterate.py --opponent runs/demo/actor --select lost --output-dir runs/arena     learn where it loses
    python scripts/iterate.py --method ppo --judge people --output-dir runs/rlhf-rounds            people, a reward model, PPO

In each round the current actor responds to prompts, the judge ranks (a reward model, a function, or people on a page), the
method trains, and held-out prompts tell how it went. Leaves rounds.md, rounds.png and actor/. Interrupted, the same command
goes on where it stopped and ends with the same result; with more --rounds it adds some.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from agents.cli.arguments import parse_command_line, read_command_line
from agents.console import SAME_COMMAND, PlainConsole, attempt
from agents.iteration.settings import IterationSettings

console = PlainConsole()


@dataclass(frozen=True, kw_only=True)
class Args(IterationSettings):
    """Iterate."""


def run(args: Args) -> int:
    """Runs the rounds; returns the exit status."""
    from agents.iteration.rounds import iterate  # imports torch, which --help need not wait for

    evaluations, status = attempt(lambda: iterate(args, console), console, SAME_COMMAND)
    if evaluations is None:
        return status
    from agents.iteration.report import rounds_table

    console.print(rounds_table(evaluations))
    folder = args.output_dir
    console.print(f"Done. Actor: {folder / 'actor'}   picture: {folder / 'rounds.png'}")
    return 0


def check(argv: Sequence[str]) -> None:
    """Checks a command line without reading or writing anything else; see `agents.pipeline.commands.check_command`."""
    from agents.iteration.training import check_training  # imports torch

    args = read_command_line(Args, argv)
    args.check()
    check_training(args)


def main(argv: Sequence[str]) -> int:
    """Reads the command line and runs it; returns the exit status."""
    return run(parse_command_line(Args, argv, __doc__))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
