r"""Says what a run would need in memory, before anything is loaded; `train --dry-run` says the same.

    llm-env plan --model FOLDER_OR_HUB_ID --reward-model my_module:my_reward --prompts prompts.jsonl
    llm-env plan --model FOLDER_OR_HUB_ID … --memory 80GB            on a GPU that is not here
    llm-env plan --config run.yaml --json

The options are those of train. Models' configurations, tokenizers and prompts are read, no weights. docs/memory.md explains the
table.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence

from agents.cli.arguments import read_command_line
from agents.cli.train import RunArgs, check_together, parse
from agents.console import PlainConsole, plain_warnings, print_error
from agents.memory.amounts import read_amount
from agents.processes import RunProcesses
from agents.runs.settings import RunSettings

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
    args = parse(argv, read_command_line, Args)
    args.settings.checked()
    if args.memory is not None:
        read_amount("memory", args.memory)


def main(argv: Sequence[str]) -> int:
    """Runs the command line; returns the exit status: 0 where the run fits, 3 where it does not."""
    plain_warnings(console)
    try:
        args = parse(argv, kind=Args)
        memory = None if args.memory is None else read_amount("memory", args.memory)
        return show(args.settings.checked(), args.together, memory, args.json)
    except (ValueError, TypeError, OSError, ImportError) as error:
        print_error(str(error))
        return 1


def show(settings: RunSettings, together: RunProcesses, memory: int | None = None, as_json: bool = False) -> int:
    """Plans a run and prints the plan; returns the exit status.

    Args:
        settings: The run's settings, checked.
        together: Its processes.
        memory: Bytes of the device to plan for; None: of this machine's.
        as_json: Whether to print JSON.

    Raises:
        FileNotFoundError, ValueError, TypeError, ImportError: something is wrong with the settings, or cannot be read.
    """
    from agents.memory import device, table  # these import torch, which --help need not wait for
    from agents.memory.plan import make_plan
    from agents.memory.remedies import remedies

    check_together(together, settings)
    kind = device.kind(settings.task.device, memory is not None)
    has, whose = device.memory(kind) if memory is None else (memory, "that were given")
    plan = make_plan(settings, together.processes, together.sharding, kind)
    fits = plan.needed <= has
    found = [] if fits else remedies(plan, has)
    if as_json:
        told = plan.to_dict() | {"memory": has, "fits": fits}
        told["remedies"] = [{"options": o, "costs": c, "needed": p.needed} for o, c, p in found]
        sys.stdout.write(json.dumps(told, indent=1) + "\n")
    else:
        console.print(table.text(plan))
        console.print("\n" + table.verdict(plan, has, whose))
        if not fits:
            console.print(table.advice(found, has))
    return 0 if fits else 3


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
