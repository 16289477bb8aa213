"""Settings given as ``name=value`` on a command line."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import yaml


def named_values(option: str, entries: Sequence[str]) -> dict[str, Any]:
    """Reads entries as YAML values by name.

    Args:
        option: What they were given to, for errors.
        entries: ``name=value`` each.

    Raises:
        ValueError: one is not of that form, or a name stands there twice.
    """
    found: dict[str, Any] = {}
    for entry in entries:
        name, equals, value = entry.partition("=")
        name = name.strip()
        if not equals or not name:
            raise ValueError(f"{option}: {entry!r} must be name=value.")
        if name in found:
            raise ValueError(f"{option}: {name} is given twice.")
        found[name] = yaml.safe_load(value)
        if isinstance(found[name], str):
            with contextlib.suppress(ValueError):  # YAML reads 3e-4 as a text
                found[name] = float(found[name])
    return found
