r"""Says what a run would need in memory, before anything is loaded; `train --dry-run` says the same.

    llm-env plan --model FOLDER_OR_HUB_ID --reward-model my_module:my_reward --prompts prompts.jsonl
    llm-env plan --model FOLDER_OR_HUB_ID … --memory 80GB            on a GPU that is not here
    llm-env plan --config run.yaml --json

The options are those of train. Models' configurations, tokenizers and prompts are read, no weights. docs/memory.md explains the
table.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

from agents.cli.arguments import read_command_line
from agents.cli.train import RunArgs, check_together, parse_as
from agents.console import PlainConsole, plain_warnings, print_error
from agents.memory.amounts import read_amount

console = PlainConsole()


@dataclasses.dataclass(frozen=True)
class Args(RunArgs):
    """The command line: a run's, and what it is to fit in."""

    memory: str | None = None
    """Memory of the device to plan for, as 80GB or 24GiB: a GPU, unless --device is cpu. Default: this machine's device."""
    json: bool = False
    """Print JSON, in bytes, instead of a table."""


def check(argv: Sequence[str]) -> None:
    """Checks a command line without loading a model; see `agents.pipeline.commands.check_command`."""
    args = parse_as(Args, argv, read_command_line)
    args.settings.checked()
    if args.memory is not None:
        read_amount("memory", args.memory)


def main(argv: Sequence[str]) -> int:
    """Runs the command line; returns the exit status: 0 where the run fits, 3 where it does not."""
    plain_warnings(console)
    try:
        args = parse_as(Args, argv)
        memory = None if args.memory is None else read_amount("memory", args.memory)
        settings = args.settings.checked()
        check_together(args.together, settings)
        from agents.memory.show import show  # imports torch, which --help need not wait for

        return show(settings, args.together, console, memory, args.json)
    except (ValueError, TypeError, OSError, ImportError) as error:
        print_error(str(error))
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
