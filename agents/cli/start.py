"""Starts a command so that Ctrl-C ends it in one line at any time, while its libraries are imported too."""

from __future__ import annotations

import importlib
import sys


def start(name: str) -> int:
    """Runs a command with this process's arguments; returns the exit status, 130 after Ctrl-C.

    Args:
        name: The command's module in `agents.cli`.
    """
    try:
        return int(importlib.import_module(f"agents.cli.{name}").main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.stderr.write("Stopped.\n")
        return 130


def called_as() -> str:
    """How this command was called, without its options: ``llm-env train``, or ``python scripts/train.py``."""
    name = sys.argv[0]
    return f"python {name}" if name.endswith(".py") else name
