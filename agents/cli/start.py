"""Starts a command so that Ctrl-C ends it in one line at any time, while its libraries are imported too.

    python -m agents.cli.start train --seed 1           the same as python scripts/train.py --seed 1

Under `torchrun` the command is one of several processes of a run (`agents.processes`).
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Callable, Sequence

from agents import processes
from agents.console import print_error, quiet_end

TRAINING = ("train", "train_sft", "train_reward_model", "train_preference")
"""Commands that several processes run together."""


def start(name: str) -> int:
    """Runs a command with this process's arguments; returns the exit status, 130 after Ctrl-C.

    Args:
        name: The command's module in `agents.cli`.
    """
    try:
        main = importlib.import_module(f"agents.cli.{name}").main
        if not processes.under_torchrun():
            with quiet_end():
                return int(main(sys.argv[1:]))
        if name in TRAINING:
            return as_rank(main, sys.argv[1:])
        if os.environ["RANK"] == "0":
            print_error(f"{name} runs in one process: start it without torchrun. {', '.join(TRAINING)} run in several.")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("Stopped.\n")
        return 130


def as_rank(main: Callable[[Sequence[str]], int], argv: Sequence[str]) -> int:
    """Runs a command as one of the ranks that `torchrun` has started; the process ends with it.

    Args:
        main: The command's `main`.
        argv: Its command line.

    Returns:
        0, where the ranks have parted in order; else this process has ended.
    """
    from agents.distributed import LostRank, join, part

    status = 1
    try:
        join(processes.timeout_in(argv))
        status = main(argv)
    except KeyboardInterrupt:
        status = 130
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
    except BaseException as error:
        if os.environ.get("LLM_ENV_TRACEBACK"):
            raise
        # Trainers of other libraries meet in their own ways, and a connection that breaks is gloo's RuntimeError there.
        lost = isinstance(error, LostRank) or (isinstance(error, RuntimeError) and bool(processes.ranks_that_ended()))
        status = _say_lost(error) if lost else 1
        if not lost:
            print_error(f"{type(error).__name__}: {error}")
    if status == 130:
        processes.wait_for_all()
    if status == 0:
        part()
        return 0
    processes.end(status)
    return status


def _say_lost(error: BaseException) -> int:
    """Says that another rank was lost, unless somebody knows more of it; returns the exit status."""
    # A connection that breaks is mostly the end of another rank, of which the launcher knows more, and that rank most.
    is_late = "--rank-timeout" in str(error)
    if is_late or not processes.launched():
        time.sleep(0.0 if is_late else 1.0)
        if processes.claim_failure():
            sys.stderr.write(f"error: {error}\n")
            return 1
    return processes.LOST


def called_as() -> str:
    """How this command was called, without its options: ``llm-env train``, or ``python scripts/train.py``."""
    name = sys.argv[0]
    return f"python {name}" if name.endswith(".py") else name


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    # One of the processes of a command is called what the command is called.
    sys.argv[:] = [os.environ.get(processes.LAUNCHED) or f"scripts/{command}.py", *arguments]
    sys.exit(start(command))
