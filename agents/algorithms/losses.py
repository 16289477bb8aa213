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
        clip_low: The ratio is held above 1 - this.
        clip_high: The ratio is held below 1 + this.

    Returns:
        To minimize, shape (n,).
    """
    # π/π_old of each token. (n,)
    ratio = torch.exp(log_prob - old_log_prob)
    clipped = torch.clamp(ratio, 1 - clip_low, 1 + clip_high)
    # The smaller gain: clipping takes gradients away, and never adds any.
    return -torch.min(advantages * ratio, advantages * clipped)


def kl_penalty(
    estimator: str, log_prob: Tensor, ref_log_prob: Tensor | None = None, exact_kl: Tensor | None = None
) -> Tensor:
    """KL(π‖π_ref) of each token as a term of the loss, before β.

    Its gradient differs from that of the same estimator in the reward. On samples of π, k2's is the KL's gradient token by
    token, k3's is it up to second order, and k1's is 0 in expectation: it restrains nothing (Tang and Munos 2025,
    https://arxiv.org/abs/2506.09477). That of the exact KL has no sampling noise of the token itself. The estimators are
    those of Schulman 2020 (http://joschu.net/blog/kl-approx.html); GRPO's loss has k3 (eq. 4 of Shao et al. 2024,
    https://arxiv.org/abs/2402.03300).

    Args:
        estimator: ``k1``, ``k2``, ``k3`` or ``exact``.
        log_prob: log π, in nats, shape (n,), with gradients.
        ref_log_prob: log π_ref, in nats, shape (n,), for the first three.
        exact_kl: KL of the whole distributions, in nats, shape (n,), with gradients, for ``exact``.

    Returns:
        Nats, shape (n,).

    Raises:
        ValueError: the estimator is not known, or what it needs is missing.
    """
    if estimator == "exact" and exact_kl is not None:
        return exact_kl
    if estimator in ("k1", "k2", "k3") and ref_log_prob is not None:
        log_ratio = log_prob - ref_log_prob
        if estimator == "k1":
            return log_ratio
        # k2, or k3 = exp(-r) - 1 + r with r = log π - log π_ref; expm1 keeps its digits near 0.
        return log_ratio**2 / 2 if estimator == "k2" else torch.expm1(-log_ratio) + log_ratio
    raise ValueError(
        f"kl_estimator={estimator!r} in the loss needs the log-probabilities of the reference (k1, k2, k3) or the KL of the "
        "whole distributions (exact)."
    )


def approximate_kl(log_prob: Tensor, old_log_prob: Tensor) -> Tensor:
    """KL(π_old‖π) by k3, mean over tokens: what stable-baselines3 logs as ``train/approx_kl``.

    Args:
        log_prob: log π under the current weights, in nats, shape (n,).
        old_log_prob: The same under the weights that sampled, shape (n,).

    Returns:
        Nats per token, a scalar.
    """
    # Samples are of π_old, so k3's ratio is π/π_old; SB3's very expression, so that the logs agree bit for bit.
    log_ratio = log_prob - old_log_prob
    return torch.mean((torch.exp(log_ratio) - 1) - log_ratio)


def check_aggregation(how: str) -> None:
    """Refuses what `aggregate` does not know.

    Raises:
        ValueError: the ways there are are named.
    """
    if how not in LOSS_AGGREGATIONS:
        raise ValueError(f"loss_aggregation={how!r} is not known; use one of {', '.join(LOSS_AGGREGATIONS)}.")


def aggregate(per_token: Tensor, counts: Sequence[int], how: str, max_tokens: int) -> Tensor:
    """One number from the losses of all tokens of B responses, which lie end to end.

    Args:
        per_token: Shape (n,).
        counts: Tokens of each response; they sum to n.
        how: ``sequence``: mean of each response, then mean over responses (GRPO as published, eq. 3 of Shao et al. 2024);
            ``token``: mean over all tokens (DAPO, eq. 12 of Yu et al. 2025); ``constant``: sum over B times `max_tokens`,
            so that long responses are not let off lightly (Dr. GRPO, Liu et al. 2025).
        max_tokens: Length cap of a response.

    Returns:
        A scalar in the unit of `per_token`.

    Raises:
        ValueError: `how` is not known.
    """
    check_aggregation(how)
    if how == "token":
        return per_token.mean()
    if how == "constant":
        return per_token.sum() / (len(counts) * max_tokens)
    lengths = torch.as_tensor(counts, device=per_token.device)
    # Each token weighs 1/|y| of its response's length, and each response 1/B.
    return (per_token / torch.repeat_interleave(lengths, lengths)).sum() / len(counts)
