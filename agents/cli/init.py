"""Writes a folder to start from: a reward function of one's own with its test, prompts, settings, and how to go on.

llm-env init my-task
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

import agents
from agents.cli.arguments import parse_command_line, read_command_line
from agents.console import PlainConsole, attempt
from agents.files import write_text
from agents.output_folder import check_output_folder

STARTER = Path(agents.__file__).parent / "starter"
"""The files, as they are written; ``NAME`` in README.md stands for the folder's name."""

console = PlainConsole()


@dataclass(frozen=True)
class Args:
    """Write a folder to start from."""

    name: tyro.conf.Positional[Path]
    """The folder, new or empty."""


def write_starter(folder: Path) -> None:
    """Writes the files.

    Raises:
        FileExistsError: the folder is not empty.
        OSError: there can be no such folder.
    """
    check_output_folder(folder, "name")
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"name={str(folder)!r} is not empty. Choose another folder: nothing was written.")
    folder.mkdir(parents=True, exist_ok=True)
    for file in sorted(STARTER.iterdir()):
        if file.is_file():
            text = file.read_text(encoding="utf-8")
            write_text(
                folder / file.name, text.replace("NAME", folder.resolve().name) if file.suffix == ".md" else text
            )


def run(args: Args) -> int:
    """Writes the folder and says what to do with it; returns the exit status."""
    _, status = attempt(lambda: write_starter(args.name), console, go_on="")
    if status == 0:
        console.print(f"{args.name} has a reward function, its test, prompts and settings. Train with:")
        console.print(f"cd {args.name} && llm-env train --config config.yaml --output-dir run")
    return status


def check(argv: Sequence[str]) -> None:
    """Checks a command line without writing anything; see `agents.pipeline.commands.check_command`."""
    read_command_line(Args, argv)


def main(argv: Sequence[str]) -> int:
    """Reads the command line and runs it; returns the exit status."""
    return run(parse_command_line(Args, argv, __doc__))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
