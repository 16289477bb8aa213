"""Policy losses that stock PPO cannot say: pure functions of flat token tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

LOSS_AGGREGATIONS = ("sequence", "token", "constant")


def clipped_surrogate(
    log_prob: Tensor, old_log_prob: Tensor, advantages: Tensor, clip_low: float, clip_high: float
) -> Tensor:
    """PPO's clipped objective for each token, eq. 7 of Schulman et al. 2017 (https://arxiv.org/abs/1707.06347).

    With a range of its own above 1: "clip-higher", eq. 10 of Yu et al. 2025, "DAPO" (https://arxiv.org/abs/2503.14476).

    Args:
        log_prob: log π(a_t|s_t) under the current weights, in nats, shape (n,).
        old_log_prob: The same under the weights that sampled, shape (n,).
        advantages: Shape (n,).
        clip_low: The ratio is held above 1 - this …
        clip_high: … and below 1 + this.

    Returns:
        To minimise, shape (n,).
    """
    ratio = torch.exp(log_prob - old_log_prob)
    clipped = torch.clamp(ratio, 1 - clip_low, 1 + clip_high)
    return -torch.min(advantages * ratio, advantages * clipped)


def k3_penalty(log_prob: Tensor, ref_log_prob: Tensor) -> Tensor:
    """k3 = π_ref/π - 1 - log(π_ref/π) for each token: the KL term in GRPO's loss.

    Eq. 4 of Shao et al. 2024 (https://arxiv.org/abs/2402.03300); Schulman 2020, "Approximating KL divergence". Its value
    is unbiased for KL(π‖π_ref); its gradient, on samples of π, is that of the squared log ratio's half, up to second order.

    Args:
        log_prob: log π, in nats, shape (n,).
        ref_log_prob: log π_ref, in nats, shape (n,).

    Returns:
        Nats, at least 0, shape (n,).
    """
    log_ratio = ref_log_prob - log_prob
    return torch.expm1(log_ratio) - log_ratio


def aggregate(per_token: Tensor, counts: Sequence[int], how: str, max_tokens: int) -> Tensor:
    """One number from the losses of all tokens of B responses, which lie end to end.

    Args:
        per_token: Shape (n,).
        counts: Tokens of each response; they sum to n.
        how: ``sequence``: mean of each response, then mean over responses (GRPO as published, eq. 3 of Shao et al. 2024);
            ``token``: mean over all tokens (DAPO, eq. 12 of Yu et al. 2025); ``constant``: sum over B times `max_tokens`,
            so that long responses are not let off lightly (Dr. GRPO, Liu et al. 2025).
        max_tokens: Length cap of a response.

    Raises:
        ValueError: `how` is not known.
    """
    if how == "token":
        return per_token.mean()
    if how == "constant":
        return per_token.sum() / (len(counts) * max_tokens)
    if how == "sequence":
        lengths = torch.as_tensor(counts, device=per_token.device)
        return (per_token / torch.repeat_interleave(lengths, lengths)).sum() / len(counts)
    raise ValueError(f"loss_aggregation={how!r} is not known; use one of {', '.join(LOSS_AGGREGATIONS)}.")
