"""Reads a command line into a settings class; says so where an option has another name now, or lacks its value."""

from __future__ import annotations

import contextlib
import io
import re
import typing
from collections.abc import Sequence
from typing import Any, TypeVar

import tyro

from agents.cli import help_text
from agents.cli.main import commands
from agents.console import READER_GONE, print_error, quiet_end
from agents.flat_settings import flat_types

Settings = TypeVar("Settings")

RENAMED = {
    "--centring": "--center-rewards-coefficient",
    "--normalise-on": "--normalize-on",
}
"""Options that have another name now, by the old name. A command that still has an option of the old name keeps it."""


def parse_command_line(
    cls: type[Settings], argv: Sequence[str], description: str | None, default: Settings | None = None
) -> Settings:
    """Reads a command line with `tyro.cli`; a boolean field ``people`` is ``--people/--no-people``.

    Args:
        cls: A dataclass; its fields, and those of dataclasses nested in it, are the options.
        argv: The command line without the program's name.
        description: Text above the options in ``--help``, usually the command's module docstring.
        default: Settings to start from, for example from a file; None: the class's defaults.

    Raises:
        SystemExit: with status 2 and an error on the standard error stream, where an option is unknown, lacks its value or has
            one of the wrong type; with status 0 after ``--help``.
    """
    try:
        return read_command_line(cls, argv, description, default)
    except ValueError as error:
        print_error(error)
        raise SystemExit(2) from error


def read_command_line(
    cls: type[Settings], argv: Sequence[str], description: str | None = None, default: Settings | None = None
) -> Settings:
    """Reads a command line; see `parse_command_line` for the arguments.

    Raises:
        ValueError: an option is unknown, lacks its value or has one of the wrong type.
        SystemExit: with status 0 after ``--help``.
    """
    refuse_old_forms(cls, argv)
    refuse_missing_values(cls, argv)
    arguments: dict[str, Any] = {} if default is None else {"default": default}
    said = io.StringIO()
    try:
        with quiet_end(), contextlib.redirect_stderr(said):
            about = help_text.as_called(description, {c.module: name for name, c in commands().items()})
            with help_text.registry():
                return tyro.cli(cls, args=argv, description=about, **arguments)
    except SystemExit as stop:
        if stop.code in (None, 0, READER_GONE):
            raise
        raise ValueError(words_of_box(said.getvalue())) from None


def words_of_box(box: str) -> str:
    """The words of tyro's error, which stand in a box of several lines, with the options' help below.

    Args:
        box: What tyro wrote to the standard error stream.
    """
    paragraphs: list[list[str]] = [[]]  # between horizontal lines
    for line in box.strip().splitlines()[1:]:  # the first has the box's title
        words = line.strip(" │|")
        if not words.strip("╭╮╰╯─-"):  # plain - where the terminal has no UTF-8
            paragraphs.append([])
        else:
            paragraphs[-1].append(words)
    text = " ".join(" ".join(p) for p in paragraphs if p and not p[0].startswith(("Argument helptext", "For full")))
    text = re.sub(r"Missing from [^:]+:", "Required options are missing:", text).replace(" (required)", "")
    return f"{text.rstrip('.')}. See --help." if text else "the command line cannot be read. See --help."


def refuse_old_forms(cls: type[Any], argv: Sequence[str]) -> None:
    """Refuses options that were renamed, and ``True`` or ``False`` behind a boolean option.

    Raises:
        ValueError: the command line has one; the message names the new form.
    """
    kinds = {f"--{name.replace('_', '-')}": kind for name, kind in flat_types(cls).items()}
    for place, word in enumerate(argv):
        option, has_equals, value = word.partition("=")
        option = option.replace("_", "-")
        if option in RENAMED and option not in kinds:
            raise ValueError(f"{option} is called {RENAMED[option]} now.")
        name = option if option in kinds else option.replace("--no-", "--", 1)
        value = value if has_equals else "".join(argv[place + 1 : place + 2])
        if kinds.get(name) is bool and value.lower() in ("true", "false"):
            raise ValueError(f"{option} {value}: booleans are flags now: {name} or {name.replace('--', '--no-', 1)}")


def refuse_missing_values(cls: type[Any], argv: Sequence[str]) -> None:
    """Refuses ``--reward-model`` without a name and ``--model ''``, which would both quietly mean the default.

    Only ``--vary ''`` of sweep.py may be empty: it is the variant in which nothing is changed.

    Raises:
        ValueError: an option stands without its value, or with an empty one.
    """
    kinds = flat_types(cls)
    for place, word in enumerate(argv):
        # --name value, --name=value, and tyro takes --some_name for --some-name
        option, has_equals, value = word.partition("=")
        kind = kinds.get(option.removeprefix("--").replace("-", "_")) if option.startswith("--") else None
        if kind is None or kind is bool:
            continue
        values = [value] if has_equals else values_after(argv, place)
        takes_list = any(typing.get_origin(k) in (tuple, Sequence) for k in (kind, *typing.get_args(kind)))
        if takes_list and not values:
            raise ValueError(f"{option} needs at least one value. Leave it out for its default.")
        if "" in values and option != "--vary":
            raise ValueError(f"{option} '' is empty. Give it a value, or leave it out for its default.")


def values_after(argv: Sequence[str], place: int) -> list[str]:
    """The words behind the option at a place of the command line, up to the next option."""
    values: list[str] = []
    for word in argv[place + 1 :]:
        if word.startswith("--"):
            break
        values.append(word)
    return values
