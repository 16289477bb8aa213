"""The commands of `agents.cli`: running a command, in a process of its own or in this one."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Protocol


class RunCommand(Protocol):
    """Runs a command of `agents.cli` and returns its exit status."""

    def __call__(self, name: str, argv: Sequence[str], log: Path | None = None, threads: int = 0) -> int:
        """Runs the command.

        Args:
            name: The command's module in `agents.cli`.
            argv: Its command line, without the name: options and their values.
            log: A file that its output is appended to. None: it goes where this process's goes.
            threads: CPU threads that it may use; 0: as many as torch likes.
        """
        ...


def run_child(name: str, argv: Sequence[str], log: Path | None = None, threads: int = 0) -> int:
    """Runs a command in a child process, which leaves no models in this one's memory; see `RunCommand`."""
    words = [sys.executable, "-m", f"agents.cli.{name}", *argv]
    environment = {**os.environ, **({"OMP_NUM_THREADS": str(threads)} if threads else {})}
    with log.open("a", encoding="utf-8") if log is not None else nullcontext() as file:
        return subprocess.run(words, stdout=file, stderr=file, env=environment, check=False).returncode


def run_here(name: str, argv: Sequence[str], log: Path | None = None, threads: int = 0) -> int:
    """Runs a command in this process, which saves the seconds of a start; `log` and `threads` are not heeded."""
    try:
        return importlib.import_module(f"agents.cli.{name}").main(list(argv))
    except SystemExit as stop:  # a command line that cannot be read
        return int(stop.code or 0)


def check_command(name: str, argv: Sequence[str], where: str) -> None:
    """Checks a command's line, and that its values keep their rules, before anything runs.

    Args:
        name: The command's module in `agents.cli`; its function `check` does the work.
        argv: Its command line, without the name.
        where: The stage or variant that it comes from, for the error.

    Raises:
        ValueError: the command would refuse it.
    """
    try:
        importlib.import_module(f"agents.cli.{name}").check(list(argv))
    except (ValueError, TypeError, OSError) as error:
        raise ValueError(f"{where}: {error}") from error
