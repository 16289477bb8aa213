"""What all commands share: how they read their options, what they print, and how a stage ends."""

from __future__ import annotations

import contextlib
import dataclasses
import typing
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import yaml
from rich.console import Console
from rich.markup import escape

from llm_env.extras import explained

Settings = TypeVar("Settings")

RENAMED = {
    "--centring": "--center-rewards-coefficient",
    "--normalise-on": "--normalize-on",
}
"""Options that have another name now, by the old name. A command that still has an option of the old name keeps it."""


def parse_command_line(
    cls: type[Settings], argv: Sequence[str], description: str | None, default: Settings | None = None
) -> Settings:
    """Reads a command line into a settings class with `tyro.cli`; a boolean field ``people`` is ``--people/--no-people``.

    Args:
        cls: A dataclass; its fields are the options, their docstrings the help.
        argv: The command line without the program's name.
        description: Text above the options in ``--help``, usually the command's module docstring.
        default: Settings to start from, for example from a file; None: the class's defaults.

    Raises:
        SystemExit: with status 2 after one line on the standard error stream, where an option is unknown or has a bad value;
            with status 0 after ``--help``.
    """
    import tyro

    try:
        _check_options(cls, argv)
    except ValueError as error:
        print_error(error)
        raise SystemExit(2) from error
    if default is None:
        return tyro.cli(cls, args=argv, description=description)
    return tyro.cli(cls, args=argv, description=description, default=default)


def _check_options(cls: type, argv: Sequence[str]) -> None:
    """Refuses options that were renamed, and ``True`` or ``False`` behind a boolean option.

    Raises:
        ValueError: the command line has one; the message names the new form.
    """
    types = dict(_option_types(cls))
    for i, word in enumerate(argv):
        option, equals, value = word.partition("=")
        option = option.replace("_", "-")
        if option in RENAMED and option not in types:
            raise ValueError(f"{option} is called {RENAMED[option]} now.")
        plain = option.replace("--no-", "--", 1)
        if types.get(plain) is bool or types.get(option) is bool:
            name = plain if types.get(plain) is bool else option
            value = value if equals else "".join(argv[i + 1 : i + 2])
            if value.lower() in ("true", "false"):
                raise ValueError(
                    f"{option} {value}: booleans are flags now: {name} or {name.replace('--', '--no-', 1)}"
                )


def _option_types(cls: type) -> Iterator[tuple[str, Any]]:
    """(``--option``, type) of a dataclass's fields; of a field that is a dataclass itself, those of its fields."""
    types = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(types[field.name]):
            yield from _option_types(types[field.name])
        yield "--" + field.name.replace("_", "-"), types[field.name]


def named_values(option: str, entries: Sequence[str]) -> dict[str, Any]:
    """Reads settings of the form ``name=value``; a value is read as YAML.

    Args:
        option: Name of the option that holds the entries, for errors.
        entries: The settings, each ``name=value``.

    Returns:
        The values by name.

    Raises:
        ValueError: an entry is not of that form, or a name stands there twice.
    """
    values: dict[str, Any] = {}
    for entry in entries:
        name, equals, text = entry.partition("=")
        name = name.strip()
        if not equals or not name:
            raise ValueError(f"{option}: {entry!r} must be name=value.")
        if name in values:
            raise ValueError(f"{option}: {name} is given twice.")
        values[name] = yaml.safe_load(text)
        if isinstance(values[name], str):
            with contextlib.suppress(ValueError):  # YAML reads 3e-4 as a text
                values[name] = float(values[name])
    return values


def plain_warnings(console: Console) -> None:
    """Shows warnings as ``note: …`` without file and source line, and those meant for other libraries' developers not at all.

    It replaces `warnings.showwarning` for the rest of the process, which is what a command wants; inside
    ``with warnings.catch_warnings():`` it holds until the end of the block.
    """

    def show(message: Warning | str, category: type[Warning], *args: Any, **kwargs: Any) -> None:
        if not issubclass(category, FutureWarning | DeprecationWarning):
            console.print(f"note: {message}", style="yellow", highlight=False, markup=False)

    warnings.showwarning = show  # type: ignore[assignment]


def print_error(error: Exception | str) -> None:
    """Prints ``error: …`` on the standard error stream, on one line."""
    message = explained(error) if isinstance(error, ModuleNotFoundError) else str(error)
    text = " ".join(message.split())
    Console(stderr=True, soft_wrap=True).print(f"error: {text}", style="red", highlight=False, markup=False)


def attempt(stage: Callable[[], dict[str, Any]], console: Console) -> tuple[dict[str, Any] | None, int]:
    """Runs a stage that ``--resume`` can continue, and says what happened where it did not end.

    Args:
        stage: Trains, and returns the report.
        console: Where warnings, and the line about an interruption, are printed.

    Returns:
        (report, 0); (None, 130) after Ctrl-C; (None, 1) after an error in the settings or files. Other errors are raised.
    """
    with warnings.catch_warnings():
        plain_warnings(console)
        try:
            return stage(), 0
        except KeyboardInterrupt:
            console.print("Stopped. Go on with the same command and --resume", highlight=False)
            return None, 130
        except (ValueError, TypeError, OSError, ImportError) as error:
            print_error(error)
            return None, 1


def print_left_out(left_out: dict[str, int], console: Console) -> None:
    """Prints how many training records were left out or cut, by reason; nothing where none was."""
    text = ", ".join(f"{count} {reason}" for reason, count in left_out.items() if count)
    if text:
        console.print(f"Training records, noted: {text}.", highlight=False)


def print_samples(samples: Sequence[dict[str, str]], console: Console) -> None:
    """Prints samples with the keys ``prompt`` and ``response``, prompts dimmed."""
    for sample in samples:
        console.print(f"[dim]{escape(sample['prompt'])}[/dim]{escape(sample['response'])}", highlight=False)
