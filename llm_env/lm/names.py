"""How a model is loaded, in names and plain values: what settings can check without importing torch."""

from __future__ import annotations

from typing import NamedTuple

DTYPE_NAMES = ("float32", "fp32", "bfloat16", "bf16", "float16", "fp16")
PRECISIONS = ("no", "bf16")


class LoadSettings(NamedTuple):
    """How a model is loaded: everything that makes two handles different, besides the name."""

    dtype: str = "float32"
    device: str = "auto"
    trust_remote_code: bool = False


def check_dtype(name: str) -> None:
    """Refuses what is not a type of weights.

    Raises:
        ValueError: the name is none of `DTYPE_NAMES`.
    """
    if name not in DTYPE_NAMES:
        raise ValueError(f"dtype={name!r} is not known; use one of {', '.join(DTYPE_NAMES)}.")


def check_mixed_precision(value: str) -> None:
    """Refuses what is not a precision.

    Raises:
        ValueError: it is neither ``"no"`` nor ``"bf16"``.
    """
    if value not in PRECISIONS:
        raise ValueError(f"mixed_precision={value!r} is not known; use 'no' or 'bf16'.")
