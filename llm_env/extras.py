"""Optional packages: what each extra of ``pip install 'llm-env[EXTRA]'`` brings, and one error for what is missing."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

PURPOSES = {
    "lora": "LoRA adapters (lora_rank)",
    "supervised": "supervised stages: fine-tuning, reward models, preference losses, rounds",
    "plots": "pictures and TensorBoard logs",
    "data": "prompts from .parquet files and from datasets",
    "people": "the page on which people rank responses",
}
"""What each extra of ``pyproject.toml`` is needed for."""

_DISTRIBUTIONS = {"PIL": "pillow"}  # where a package is imported by another name than it is installed by


def require(module: str, extra: str) -> Any:
    """Imports a module of an optional package.

    Args:
        module: Name to import, such as ``peft`` or ``trl.experimental.cpo``.
        extra: Key of `PURPOSES` that installs it.

    Returns:
        The module.

    Raises:
        ImportError: the package is not installed; names the extra that brings it. Errors inside the package pass through.
    """
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != package:
            raise  # the package is there, and misses one that it needs itself
        name = _DISTRIBUTIONS.get(package, package)
        raise ImportError(
            f"{name} is needed for {PURPOSES[extra]} and is not installed: pip install 'llm-env[{extra}]'",
            name=package,
        ) from error


def installed(package: str) -> bool:
    """Whether a top-level package can be imported; does not import it."""
    return importlib.util.find_spec(package) is not None
