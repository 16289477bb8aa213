"""What all commands share: settings of the form name=value, what they print, and how a stage ends."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from rich.console import Console
from rich.text import Text

from agents.flat_settings import parse_yaml
from agents.processes import name_rank
from llm_env.extras import explained
from llm_env.reward.scores import RewardModelError
from llm_env.text.printable import printable
from llm_env.worlds.base import WorldError

T = TypeVar("T")
RESUME = "Go on with the same command and --resume"
READER_GONE = 141
"""Exit status where nobody reads the output any more: that of a command which the signal SIGPIPE ends."""
SAME_COMMAND = "The same command goes on."


class PlainConsole(Console):
    """A console that shows every text as it is, its own and the user's.

    Square brackets are no markup, ``:smile:`` is no picture, numbers get no color, and control characters are shown as
    escapes, in printed lines, tables and rules alike.

    Args:
        arguments: Keyword arguments of rich's `Console`.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, "highlight": False, "soft_wrap": True, **arguments})

    def render_str(self, text: str, **arguments: Any) -> Text:
        """Makes rich's text of a string; rich calls it for all that is printed."""
        return super().render_str(printable(text), **arguments)


def say(console: Console, text: str) -> None:
    """Prints a line with texts of the user's on any console, as `PlainConsole` shows it."""
    console.print(Text(printable(text)))


@contextlib.contextmanager
def quiet_end() -> Iterator[None]:
    """Ends the process quietly where nobody reads its standard output any more, as behind ``| head``.

    Raises:
        SystemExit: with status `READER_GONE`.
        BrokenPipeError: what broke is another pipe or connection.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not _reader_is_gone():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left is written as Python ends
        raise SystemExit(READER_GONE) from None


def _reader_is_gone() -> bool:
    """Whether the standard output is a pipe that nobody reads."""
    if not hasattr(select, "poll"):  # Windows
        return False
    watched = select.poll()
    watched.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in watched.poll(0))


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
        values[name] = parse_yaml(text, f"{option}: {name}")
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
            console.print(Text(printable(f"note: {message}")), style="yellow")

    warnings.showwarning = show  # type: ignore[assignment]


def print_error(error: Exception | str) -> None:
    """Prints ``error: …`` on the standard error stream, on one line; of several processes the first that fails."""
    message = explained(error) if isinstance(error, ModuleNotFoundError) else str(error)
    text = name_rank(" ".join(message.split()))
    if text is None:
        return
    PlainConsole(stderr=True).print(f"error: {text}", style="red")


def attempt(stage: Callable[[], T], console: Console, go_on: str = RESUME) -> tuple[T | None, int]:
    """Runs a command's work, and says what happened where it did not end.

    Args:
        stage: Does the work, and returns what there is to report.
        console: Where warnings, and the line about an interruption, are printed.
        go_on: What that line says about going on.

    Returns:
        (report, 0); (None, 130) after Ctrl-C; (None, 1) after an error in the settings, the files or a reward model, or
        numbers that are not finite any more. Other errors are raised: they are mistakes of ours.
    """
    with warnings.catch_warnings():
        plain_warnings(console)
        try:
            return stage(), 0
        except KeyboardInterrupt:
            say(console, f"Stopped. {go_on}".rstrip())
            return None, 130
        except (ValueError, TypeError, OSError, ImportError, FloatingPointError, RewardModelError, WorldError) as error:
            print_error(error)
            return None, 1


def print_left_out(left_out: dict[str, int], console: Console) -> None:
    """Prints how many training records were left out or cut, by reason; nothing where none was."""
    text = ", ".join(f"{count} {reason}" for reason, count in left_out.items() if count)
    if text:
        say(console, f"Training records, noted: {text}.")


def print_samples(samples: Sequence[dict[str, str]], console: Console) -> None:
    """Prints samples with the keys ``prompt`` and ``response``, prompts dimmed."""
    for sample in samples:
        console.print(
            Text(printable(sample["prompt"]), style="dim").append(printable(sample["response"]), style="none")
        )
