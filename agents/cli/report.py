r"""Writes a run's page again, report.html: curves, samples over time with colored tokens, settings.

    llm-env report runs/demo                        also of a run that was killed, or is from before there were pages
    llm-env report runs/demo --output demo.html

A run writes its page itself when it ends. The page is one file that loads nothing (docs/pages.md).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from agents.cli.arguments import parse_command_line, read_command_line
from agents.console import PlainConsole, attempt, say

console = PlainConsole()


@dataclass(frozen=True, kw_only=True)
class Args:
    """Write a run's page."""

    run: tyro.conf.Positional[Path]
    """The run's folder."""
    output: Path | None = None
    """The file to write. Default: RUN/report.html."""


def write(args: Args) -> None:
    """Writes the page.

    Raises:
        FileNotFoundError, ValueError: there is no run in the folder, or one of its files is none of a run's.
        OSError: the file cannot be written.
    """
    from agents.output_folder import check_output_file
    from agents.runs.report.page import REPORT, write_report

    output = args.output or args.run / REPORT
    check_output_file("output", output)
    say(console, f"The page: {write_report(args.run, output)}")


def check(argv: Sequence[str]) -> None:
    """Checks a command line without reading or writing anything else; see `agents.pipeline.commands.check_command`."""
    read_command_line(Args, argv)


def main(argv: Sequence[str]) -> int:
    """Reads the command line and runs it; returns the exit status."""
    args = parse_command_line(Args, argv, __doc__)
    return attempt(lambda: write(args), console, "")[1]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
