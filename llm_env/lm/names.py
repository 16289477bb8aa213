"""Names and plain values that say how a model is loaded; settings are checked against them without importing torch."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, NamedTuple

DTYPE_NAMES = ("float32", "fp32", "bfloat16", "bf16", "float16", "fp16")
PRECISIONS = ("no", "bf16")
QUANTIZATIONS = ("none", "nf4")
"""How the weights below LoRA adapters are kept; see `llm_env.lm.quantization`."""


class LoadSettings(NamedTuple):
    """How a model is loaded.

    Attributes:
        dtype: Type of the weights, one of `DTYPE_NAMES`.
        device: ``auto`` (the GPU where there is one), or a torch device.
        trust_remote_code: Whether model code from a hub may run.
        special_tokens_in_text: Whether the model's tokenizer takes special tokens in texts for what they name.
        offload: Whether a frozen model is on the CPU while nobody asks it, and on `device` only while somebody does.
        base_quantization: One of `QUANTIZATIONS`, for a causal LM that stays frozen.
        compute_dtype: What quantized layers compute in, one of `DTYPE_NAMES`; None: `dtype`.
    """

    dtype: str = "float32"
    device: str = "auto"
    trust_remote_code: bool = False
    special_tokens_in_text: bool = False
    offload: bool = False
    base_quantization: str = "none"
    compute_dtype: str | None = None

    def as_base(self, base_quantization: str, mixed_precision: str) -> LoadSettings:
        """The same for the base of LoRA adapters, whose quantized layers compute as mixed precision has it."""
        half = base_quantization != "none" and mixed_precision == "bf16"
        return self._replace(base_quantization=base_quantization, compute_dtype="bf16" if half else None)

    @property
    def at_rest(self) -> LoadSettings:
        """The same with the device that a frozen model is on while nobody asks it."""
        return self._replace(device="cpu") if self.offload else self


def check_dtype(name: str) -> None:
    """Refuses a name that is no type of weights.

    Raises:
        ValueError: the name is none of `DTYPE_NAMES`.
    """
    check_choice("dtype", name, DTYPE_NAMES)


def check_mixed_precision(value: str) -> None:
    """Refuses a name that is no mixed precision.

    Raises:
        ValueError: it is neither ``"no"`` nor ``"bf16"``.
    """
    check_choice("mixed_precision", value, PRECISIONS)


def check_base_quantization(value: str, lora_rank: int | None = None) -> None:
    """Refuses a name that is no quantization, and a quantized base without adapters.

    Args:
        value: The setting ``base_quantization``.
        lora_rank: Rank of the adapters; None: not to be checked here.

    Raises:
        ValueError: it is none of `QUANTIZATIONS`, or nothing could be trained.
    """
    check_choice("base_quantization", value, QUANTIZATIONS)
    if value != "none" and lora_rank == 0:
        raise ValueError(
            f"base_quantization={value!r} with lora_rank=0: weights in 4 bits cannot be trained, only LoRA adapters on them. "
            "Give lora_rank too, as 16."
        )


def check_choice(name: str, value: Any, known: Sequence[str]) -> None:
    """Refuses a value that is none of the names that there are.

    Args:
        name: The setting's name, for the error.
        value: What it was set to.
        known: The names that the setting can have, as the error lists them.

    Raises:
        ValueError: it is none of them; the nearest one is suggested.
    """
    if value not in known:
        near = difflib.get_close_matches(str(value), known, 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{name}={value!r} is not known; use one of {', '.join(known)}.{hint}")
