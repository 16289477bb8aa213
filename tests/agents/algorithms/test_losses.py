from __future__ import annotations

import math

import pytest
import torch

from agents.algorithms.losses import aggregate, clipped_surrogate, kl_penalty


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
    got = kl_penalty("k3", log_prob, reference)
    torch.testing.assert_close(got, torch.tensor([0.5 - 1 - math.log(0.5), 0.0], dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda x: kl_penalty("k3", x, reference), (log_prob,))
    # against the mean over samples: E_π[k3] is KL(π‖π_ref)
    pi, ref = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.2, 0.3, 0.5])
    assert (pi * kl_penalty("k3", pi.log(), ref.log())).sum().item() == pytest.approx(
        (pi * (pi / ref).log()).sum().item()
    )


def test_aggregations_by_hand() -> None:
    losses, counts = torch.tensor([1.0, 2.0, 3.0, 10.0]), [3, 1]
    assert aggregate(losses, counts, "token", 8).item() == 4.0
    assert aggregate(losses, counts, "sequence", 8).item() == (2.0 + 10.0) / 2
    assert aggregate(losses, counts, "constant", 8).item() == 16.0 / (2 * 8)
    with pytest.raises(ValueError, match="loss_aggregation='mean' is not known"):
        aggregate(losses, counts, "mean", 8)


def test_the_gradients_of_the_estimators_are_what_the_docstring_says() -> None:
    """In expectation over the policy's samples, for a softmax of three tokens."""
    logits = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64, requires_grad=True)
    reference = torch.log_softmax(torch.tensor([0.28, -0.16, 0.47], dtype=torch.float64), 0)  # close by

    def expected(estimator: str) -> torch.Tensor:
        log_pi = torch.log_softmax(logits, 0)
        per_token = kl_penalty(estimator, log_pi, reference)
        return torch.autograd.grad((log_pi.exp().detach() * per_token).sum(), logits)[0]

    log_pi = torch.log_softmax(logits, 0)
    true = torch.autograd.grad((log_pi.exp() * (log_pi - reference)).sum(), logits)[0]
    torch.testing.assert_close(expected("k1"), torch.zeros(3, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(expected("k2"), true)
    torch.testing.assert_close(expected("k3"), true, atol=0.1 * float(true.abs().max()), rtol=0)
    assert kl_penalty("exact", log_pi, exact_kl=true) is true
    for estimator in ("k4", "exact", "k2"):
        with pytest.raises(ValueError, match=f"kl_estimator='{estimator}' in the loss needs"):
            kl_penalty(estimator, log_pi)
