"""Public names of a package that are loaded at their first use, so that importing the package is quick."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def lazy_names(package: str, modules: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Makes a package's ``__getattr__`` and ``__dir__`` (PEP 562).

    Args:
        package: The package's ``__name__``.
        modules: The module of each public name that is loaded at its first use.

    Returns:
        The two functions, to be bound to these names in the package.
    """

    def load(name: str) -> Any:
        namespace = vars(sys.modules[package])
        if name not in modules:
            raise AttributeError(
                f"module {package!r} has no attribute {name!r}; it has {', '.join(namespace['__all__'])}."
            )
        value = getattr(importlib.import_module(modules[name]), name)
        namespace[name] = value  # the next use finds it without this function
        return value

    def names() -> list[str]:
        namespace = vars(sys.modules[package])
        return sorted({*namespace, *namespace["__all__"]})

    return load, names
