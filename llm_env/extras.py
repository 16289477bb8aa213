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
    "quantized": "8-bit optimizer states (optimizer=adamw_8bit) and weights in 4 bits (base_quantization=nf4)",
    "verify": "verifiers of formulas and of JSON schemas",
    "wandb": "--report-to wandb",
    "mlflow": "--report-to mlflow",
    "trackio": "--report-to trackio",
}
"""What each extra of ``pyproject.toml`` is needed for."""
SERVICES = ("wandb", "mlflow", "trackio")
"""Extras that ``all`` leaves out: each is of use to those alone who have the service."""

_DISTRIBUTIONS = {
    "PIL": "pillow",
    "math_verify": "math-verify",
}  # where a package is imported by another name than it is installed by


EXTRAS = {
    "peft": "lora",
    "trl": "supervised",
    "accelerate": "supervised",
    "datasets": "data",
    "pandas": "data",
    "pyarrow": "data",
    "matplotlib": "plots",
    "PIL": "plots",
    "tensorboard": "plots",
    "gradio": "people",
    "bitsandbytes": "quantized",
    "jsonschema": "verify",
    "math_verify": "verify",
    "wandb": "wandb",
    "mlflow": "mlflow",
    "trackio": "trackio",
}
"""The extra that brings each optional package."""


def explained(error: ModuleNotFoundError) -> str:
    """The text of an import's failure, with the extra that brings the package where it is an optional one."""
    extra = EXTRAS.get((error.name or "").partition(".")[0])
    return f"{error}: pip install 'llm-env[{extra}]'" if extra else str(error)


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
