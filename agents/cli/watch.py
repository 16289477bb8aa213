r"""A run's page while the run goes on: curves and samples come as they are written.

    llm-env watch runs/demo                         then open the address that is printed; Ctrl-C ends

The page can be opened on this machine only. From another one: ssh -L 7870:127.0.0.1:7870 MACHINE (docs/pages.md).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from agents.cli.arguments import parse_command_line, read_command_line
from agents.console import PlainConsole, attempt, say
from llm_env.rules import Rule, check_settings, whole

console = PlainConsole()
WATCH_RULES: dict[str, Rule] = {"port": whole(0, 65_535)}


@dataclass(frozen=True, kw_only=True)
class Args:
    """Watch a run."""

    run: tyro.conf.Positional[Path]
    """The run's folder."""
    port: int = 7870
    """Port of the page; 0: any that is free."""

    def check_values(self) -> None:
        """Checks the port.

        Raises:
            ValueError: it breaks its rule.
        """
        check_settings(self, WATCH_RULES)


def watch(args: Args) -> None:
    """Serves the page until Ctrl-C.

    Raises:
        FileNotFoundError, ValueError: there is no run in the folder, or the port cannot be used.
    """
    from agents.runs.report.watch import serve

    args.check_values()
    serve(args.run, args.port, lambda text: say(console, text))


def check(argv: Sequence[str]) -> None:
    """Checks a command line without reading or writing anything else; see `agents.pipeline.commands.check_command`."""
    read_command_line(Args, argv).check_values()


def main(argv: Sequence[str]) -> int:
    """Reads the command line and runs it; returns the exit status."""
    args = parse_command_line(Args, argv, __doc__)
    return attempt(lambda: watch(args), console, "")[1]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
