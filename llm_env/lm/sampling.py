"""Sampling a token from logits, and the rules that restrict what may be sampled."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def sample_tokens(
    logits: Tensor, deterministic: bool = False, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Draws a token from each row of logits, or takes the likeliest.

    Args:
        logits: Logits divided by the temperature, float32, shape (n, V).
        deterministic: Whether to take the likeliest token of each row.
        generator: Random generator; None: torch's global one.

    Returns:
        Tokens, and their log π in nats, both of shape (n,). Where a row's logits hold NaN, its log π is NaN.
    """
    drawn = None if deterministic else draw(len(logits), generator=generator, device=logits.device)
    return choose_tokens(logits, drawn)


def draw(*shape: int, generator: torch.Generator | None = None, device: torch.device | str = "cpu") -> Tensor:
    """Uniform numbers in (0, 1], float64, one for each token that is to be sampled.

    Args:
        shape: How many.
        generator: Random generator on the device; None: torch's global one.
        device: Where to draw.
    """
    # Without 0, so that a token of probability 0 in front is not drawn.
    return 1 - torch.rand(*shape, dtype=torch.float64, device=device, generator=generator)


def choose_tokens(logits: Tensor, drawn: Tensor | None) -> tuple[Tensor, Tensor]:
    """The token of each row that a uniform number falls on, by inverse transform sampling, or the likeliest.

    Args:
        logits: Logits divided by the temperature, float32, shape (n, V).
        drawn: Numbers in (0, 1], float64, shape (n,); None: the likeliest tokens.

    Returns:
        As `sample_tokens`.
    """
    log_all = torch.log_softmax(logits, -1)
    tokens = pick_tokens(log_all, drawn)
    return tokens, log_all.gather(-1, tokens[:, None])[:, 0]


def pick_tokens(log_probs: Tensor, drawn: Tensor | None) -> Tensor:
    """The tokens of `choose_tokens`, shape (n,), by all tokens' log π, shape (n, V)."""
    if drawn is None:
        return log_probs.argmax(-1)
    # In float64, because the sum has V terms; the number times the sum, which rounding moves off 1.
    cumulative = log_probs.exp().cumsum(-1, dtype=torch.float64)
    # NaN has no place in the order: the search ends behind the last token, where a GPU could not even read an error.
    return torch.searchsorted(cumulative, drawn[:, None] * cumulative[:, -1:])[:, 0].clamp_(max=log_probs.shape[-1] - 1)


def check_log_probs(log_probs: NDArray[Any]) -> None:
    """Refuses log-probs of tokens that a model drew from logits with NaN in them.

    Args:
        log_probs: Of the tokens that count, in nats, any shape.

    Raises:
        FloatingPointError: one is NaN.
    """
    if np.isnan(log_probs).any():
        raise FloatingPointError(
            "The model's logits are NaN: its weights are too large or not finite any more, as after training with too high a "
            "learning rate."
        )


NEVER = -1e30
"""The logit of a forbidden token: its probability is 0. Finite, so that probability times logit is 0 and not NaN."""


def pack_bits(masks: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Masks (N, V) as bits (N, ⌈V/8⌉), the first token in the lowest bit."""
    return np.packbits(masks, axis=-1, bitorder="little")


def unpack_bits(bits: Tensor, vocab_size: int) -> Tensor:
    """Bits (N, ⌈V/8⌉), uint8, as a boolean tensor (N, V)."""
    # Bit j of byte i is token 8i + j; bits beyond V are padding. (N, ⌈V/8⌉, 8) -> (N, V)
    places = torch.arange(8, dtype=torch.uint8, device=bits.device)
    return ((bits[:, :, None] >> places) & 1).flatten(1)[:, :vocab_size].bool()


def restrict(logits: Tensor, allowed: Tensor) -> Tensor:
    """Logits (..., V) with `NEVER` where not allowed."""
    return logits.masked_fill(~allowed, NEVER)


def top_k_mask(logits: Tensor, k: int) -> Tensor:
    """The k likeliest tokens of each row (and what ties with the last), Fan et al. 2018; logits (N, V) to bool (N, V)."""
    if not 0 < k < logits.shape[-1]:
        return torch.ones_like(logits, dtype=torch.bool)
    return logits >= logits.topk(k, -1).values[:, -1:]


def top_p_mask(logits: Tensor, p: float) -> Tensor:
    """The fewest likeliest tokens of each row that hold probability p or more.

    Nucleus sampling, Holtzman et al. 2020 (https://arxiv.org/abs/1904.09751); logits (N, V) to bool (N, V).
    """
    ordered, order = torch.sort(logits, -1, descending=True)
    before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)  # probability of what stands before each
    keep = before < p
    keep[:, 0] = True  # the likeliest stays whatever p is
    return torch.zeros_like(keep).scatter(-1, order, keep)
