"""Losses that `PairTrainer` computes instead of TRL: pure functions of a batch of pairs. TRL has only the first of them."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor


def dpo_loss(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """Direct preference optimization, eq. 7 of Rafailov et al. 2023 (https://arxiv.org/abs/2305.18290).

    -log σ(β (r_w - r_l)): the Bradley-Terry likelihood of the pair under the implicit reward β r, whose optimum over all
    policies is π ∝ π_ref exp(reward / β).

    Args:
        chosen: r_w = log π(y_w|x) - log π_ref(y_w|x), in nats, shape (B,).
        rejected: r_l, the same of the other response, shape (B,).
        beta: β, how much the policy holds to its reference, above 0.

    Returns:
        The loss of each pair, to minimize, shape (B,).
    """
    return -F.logsigmoid(beta * (chosen - rejected))


def dpop_loss(chosen: Tensor, rejected: Tensor, beta: float, penalty: float) -> Tensor:
    """DPO-Positive, eq. 3 of Pal et al. 2024, "Smaug" (https://arxiv.org/abs/2402.13228).

    -log σ(β (r_w - r_l - λ max(0, -r_w))) with r = log π(y|x) - log π_ref(y|x). DPO may lower both responses' likelihood as
    long as the rejected one's falls faster; λ charges for it as soon as the preferred one is less likely than under the
    reference, and not before.

    Args:
        chosen: r_w of each pair, in nats, shape (B,).
        rejected: r_l of each pair, in nats, shape (B,).
        beta: β, how much the policy holds to its reference, above 0.
        penalty: λ, the price of a nat below the reference; 0 is DPO.

    Returns:
        The loss of each pair, to minimize, shape (B,).
    """
    return -F.logsigmoid(beta * (chosen - rejected - penalty * torch.relu(-chosen)))


def tdpo1_loss(chosen: Tensor, rejected: Tensor, chosen_kl: Tensor, rejected_kl: Tensor, beta: float) -> Tensor:
    """Token-level DPO, the first form: eq. 15 of Zeng et al. 2024 (https://arxiv.org/abs/2404.11999).

    -log σ(u - δ), u = β r_w - β r_l, δ = β KL_l - β KL_w, where KL is the sequential KL(π_ref‖π): the sum over a response's
    positions of the whole distributions' KL.

    Args:
        chosen: r_w = log π(y_w|x) - log π_ref(y_w|x), in nats, shape (B,).
        rejected: r_l, the same of the other response, shape (B,).
        chosen_kl: Sequential KL along the preferred response, in nats, shape (B,).
        rejected_kl: Sequential KL along the other response, in nats, shape (B,).
        beta: β, how much the policy holds to its reference, above 0.

    Returns:
        The loss of each pair, to minimize, shape (B,).
    """
    return -F.logsigmoid(beta * (chosen - rejected - (rejected_kl - chosen_kl)))


def tdpo2_loss(
    chosen: Tensor, rejected: Tensor, chosen_kl: Tensor, rejected_kl: Tensor, beta: float, alpha: float
) -> Tensor:
    """Token-level DPO, the second form: eq. 17 of Zeng et al. 2024 (https://arxiv.org/abs/2404.11999).

    -log σ(u - α δ₂), δ₂ = β KL_l - sg(β KL_w): no gradient raises the preferred response's KL, and α says how much the
    difference counts.

    Args:
        chosen: r_w = log π(y_w|x) - log π_ref(y_w|x), in nats, shape (B,).
        rejected: r_l, the same of the other response, shape (B,).
        chosen_kl: Sequential KL along the preferred response, in nats, shape (B,); its gradient is stopped.
        rejected_kl: Sequential KL along the other response, in nats, shape (B,).
        beta: β, how much the policy holds to its reference, above 0.
        alpha: α, the weight of the KLs' difference; 0 is DPO.

    Returns:
        The loss of each pair, to minimize, shape (B,).
    """
    return -F.logsigmoid(beta * (chosen - rejected - alpha * (rejected_kl - chosen_kl.detach())))
