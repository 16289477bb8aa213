"""What the scripts print: warnings and errors as one line each, samples, what was left out; and how a stage ends."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape


def plain_warnings(console: Console) -> None:
    """Shows warnings as ``note: …`` without file and source line, and other libraries' notes to developers not at all."""

    def show(message: Warning | str, category: type[Warning], *args: Any, **kwargs: Any) -> None:
        if not issubclass(category, FutureWarning | DeprecationWarning):
            console.print(f"note: {message}", style="yellow", highlight=False, markup=False)

    warnings.showwarning = show  # type: ignore[assignment]


def print_error(error: Exception | str) -> None:
    """Prints ``error: …`` on the standard error stream."""
    text = " ".join(str(error).split())
    Console(stderr=True, soft_wrap=True).print(f"error: {text}", style="red", highlight=False, markup=False)


def attempt(stage: Callable[[], dict[str, Any]], console: Console) -> tuple[dict[str, Any] | None, int]:
    """Runs a stage that can be gone on with; its report and 0, or None and the exit status, after saying what happened."""
    plain_warnings(console)
    try:
        return stage(), 0
    except KeyboardInterrupt:
        console.print("Stopped. Go on with the same command and --resume True", highlight=False)
        return None, 130
    except (ValueError, TypeError, OSError, ImportError) as error:
        print_error(error)
        return None, 1


def print_left_out(left_out: dict[str, int], console: Console) -> None:
    """Says how many training records were left out or cut, by reason; nothing where none was."""
    told = ", ".join(f"{count} {reason}" for reason, count in left_out.items() if count)
    if told:
        console.print(f"Training records, noted: {told}.", highlight=False)


def print_samples(samples: Sequence[dict[str, str]], console: Console) -> None:
    """Prompts, dimmed, and what was written to them."""
    for sample in samples:
        console.print(f"[dim]{escape(sample['prompt'])}[/dim]{escape(sample['response'])}", highlight=False)
