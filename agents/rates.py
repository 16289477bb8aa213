"""The learning rate for a language model of some size, unless learning_rate says another.

The tables' rates, the algorithms' and the supervised stages', were chosen on the embedded default. Adam moves each weight by
about the rate, whatever the gradient's size, and an output is a sum over as many of them as the layer is wide; so a model that
is w times as wide gets a w-th of the rate (Yang et al. 2022, https://arxiv.org/abs/2203.03466). LoRA takes several times the
rate of all weights, ten times by Schulman et al. 2025 ("LoRA Without Regret", https://thinkingmachines.ai/blog/lora/). What
both are worth here: docs/learning.md.
"""

from __future__ import annotations

WIDTH = 128
"""Hidden size that the table's rates are for; a narrower model gets no more."""
LORA = 10
"""How many times the rate of all weights LoRA's adapters get."""


def rate_for(rate: float, width: int, lora: bool) -> float:
    """The rate of a model.

    Args:
        rate: The table's.
        width: The model's hidden size.
        lora: Whether adapters are trained instead of all weights.
    """
    return rate * min(1.0, WIDTH / width) * (LORA if lora else 1)


def rate_note(rate: float, table: float, lora: bool) -> str:
    """Says what the rate is, and why it is not the table's."""
    return (
        f"note: learning_rate={rate:.2g}, by this model's width{' and LoRA' * lora} ({table:g} is for all weights at a width "
        f"of {WIDTH}). --learning-rate sets another."
    )
