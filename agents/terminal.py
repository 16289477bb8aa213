"""What the scripts print: warnings as one line each, errors as one line."""

from __future__ import annotations

import warnings
from typing import Any

from rich.console import Console


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
