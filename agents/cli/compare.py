r"""Shows training runs beside each other: curves, last numbers, settings that differ, samples of the same prompts.

    llm-env compare runs/demo runs/other --output-dir runs/compared

It writes compare.html, one file that loads nothing, and compare.png (docs/pages.md). For many runs with a table: llm-env sweep.
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
FEWEST, MOST = 2, 6  # runs; more lines nobody tells apart


@dataclass(frozen=True, kw_only=True)
class Args:
    """Compare runs."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """The runs' folders."""
    output_dir: Path
    """Folder for compare.html and compare.png, which are replaced if they are there."""

    def check_values(self) -> None:
        """Checks the number of runs.

        Raises:
            ValueError: there are too few or too many, or one stands there twice.
        """
        if not FEWEST <= len(self.runs) <= MOST:
            raise ValueError(
                f"{len(self.runs)} runs were named; name {FEWEST} to {MOST}, to be shown beside each other."
            )
        places = [run.resolve() for run in self.runs]
        for run, place in zip(self.runs, places, strict=True):
            if places.count(place) > 1:
                raise ValueError(f"{str(run)!r} is named twice. Name each run once.")


def names_of(runs: Sequence[Path]) -> list[str]:
    """What runs are called: each folder's name, or where two have the same, with as many folders above it as it takes."""
    parts = [run.resolve().parts for run in runs]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise AssertionError("two of the folders are one")


def compare(args: Args) -> None:
    """Writes the page and the picture.

    Raises:
        FileNotFoundError, ValueError: there is no run in a folder, or one of its files is none of a run's.
        OSError: the files cannot be written.
    """
    from agents.figures import can_draw
    from agents.files import replacing, write_text
    from agents.output_folder import check_output_folder
    from agents.runs.figure import draw_beside, read_progress
    from agents.runs.report.data import read_run
    from agents.runs.report.page import page

    args.check_values()
    check_output_folder(args.output_dir)
    names = names_of(args.runs)
    shown = [read_run(run, name) for run, name in zip(args.runs, names, strict=True)]
    write_text(args.output_dir / "compare.html", page(shown))
    say(console, f"The page: {args.output_dir / 'compare.html'}")
    logs = [run / "progress.csv" for run in args.runs]
    progress = {name: read_progress(log) if log.is_file() else {} for name, log in zip(names, logs, strict=True)}
    if any(progress.values()) and can_draw():
        with replacing(args.output_dir / "compare.png") as partial:
            draw_beside(progress, partial)
        say(console, f"The picture: {args.output_dir / 'compare.png'}")


def check(argv: Sequence[str]) -> None:
    """Checks a command line without reading or writing anything else; see `agents.pipeline.commands.check_command`."""
    read_command_line(Args, argv).check_values()


def main(argv: Sequence[str]) -> int:
    """Reads the command line and runs it; returns the exit status."""
    args = parse_command_line(Args, argv, __doc__)
    return attempt(lambda: compare(args), console, "")[1]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
