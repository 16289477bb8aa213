from __future__ import annotations

import math

import pytest
import torch

from agents.algorithms.losses import aggregate, clipped_surrogate, k3_penalty


def test_clipped_surrogate_by_hand() -> None:
    ratios = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.25])
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0, 2.0])
    got = clipped_surrogate(ratios.log(), torch.zeros(5), advantages, 0.2, 0.2)
    torch.testing.assert_close(got, torch.tensor([-1.2, 1.5, -0.5, 0.8, -2.4]))
    higher = clipped_surrogate(ratios.log(), torch.zeros(5), advantages, 0.2, 0.28)
    torch.testing.assert_close(higher, torch.tensor([-1.28, 1.5, -0.5, 0.8, -2.5]))


def test_k3_by_hand_and_its_gradient_by_finite_differences() -> None:
    log_prob = torch.tensor([math.log(0.5), math.log(0.1)], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([math.log(0.25), math.log(0.1)], dtype=torch.float64)
    got = k3_penalty(log_prob, reference)
    torch.testing.assert_close(got, torch.tensor([0.5 - 1 - math.log(0.5), 0.0], dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda x: k3_penalty(x, reference), (log_prob,))
    # against the mean over samples: E_π[k3] is KL(π‖π_ref)
    pi, ref = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.2, 0.3, 0.5])
    assert (pi * k3_penalty(pi.log(), ref.log())).sum().item() == pytest.approx((pi * (pi / ref).log()).sum().item())


def test_aggregations_by_hand() -> None:
    losses, counts = torch.tensor([1.0, 2.0, 3.0, 10.0]), [3, 1]
    assert aggregate(losses, counts, "token", 8).item() == 4.0
    assert aggregate(losses, counts, "sequence", 8).item() == (2.0 + 10.0) / 2
    assert aggregate(losses, counts, "constant", 8).item() == 16.0 / (2 * 8)
    with pytest.raises(ValueError, match="loss_aggregation='mean' is not known"):
        aggregate(losses, counts, "mean", 8)
