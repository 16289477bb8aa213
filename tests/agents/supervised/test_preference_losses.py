"""Preference losses as pure functions: numbers by hand, gradients by finite differences, and where penalties begin."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from agents.supervised.preference.losses import dpo_loss, dpop_loss, tdpo1_loss, tdpo2_loss


def logistic(x: float) -> float:
    """-log σ(x)."""
    return math.log(1 + math.exp(-x))


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def test_dpo_by_hand() -> None:
    got = dpo_loss(numbers(0.0, 2.0, -1.0), numbers(0.0, -1.0, 3.0), beta=0.5)
    assert got.tolist() == pytest.approx([math.log(2), logistic(1.5), logistic(-2.0)])


def test_dpop_by_hand() -> None:
    got = dpop_loss(numbers(2.0, -1.0, 0.0), numbers(-1.0, -4.0, 1.0), beta=0.1, penalty=5.0)
    assert got.tolist() == pytest.approx([logistic(0.3), logistic(0.1 * (3 - 5)), logistic(-0.1)])


def test_tdpo_by_hand() -> None:
    pair = numbers(1.0), numbers(-1.0), numbers(0.5), numbers(2.0)
    assert tdpo1_loss(*pair, beta=0.1).item() == pytest.approx(logistic(0.1 * (2 - 1.5)))
    assert tdpo2_loss(*pair, beta=0.1, alpha=0.5).item() == pytest.approx(logistic(0.1 * (2 - 0.75)))


def test_gradients_are_those_of_finite_differences() -> None:
    torch.manual_seed(0)
    chosen, rejected = (torch.randn(5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    kls = [torch.rand(5, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    check = torch.autograd.gradcheck
    assert check(lambda a, b: dpo_loss(a, b, 0.3), (chosen, rejected))
    assert check(lambda a, b: dpop_loss(a, b, 0.3, 5.0), (chosen, rejected))
    assert check(lambda *x: tdpo1_loss(*x, beta=0.3), (chosen, rejected, *kls))
    fixed = kls[0].detach()  # tdpo2 stops this gradient, so the difference quotient would disagree
    assert check(lambda a, b, c: tdpo2_loss(a, b, fixed, c, beta=0.3, alpha=0.5), (chosen, rejected, kls[1]))


def test_dpops_penalty_begins_where_the_preferred_response_is_less_likely_than_under_the_reference() -> None:
    above, below, rejected = numbers(0.5), numbers(-0.5), numbers(-2.0)
    assert dpop_loss(above, rejected, 0.1, 50.0).item() == dpo_loss(above, rejected, 0.1).item()
    assert dpop_loss(below, rejected, 0.1, 50.0).item() > dpo_loss(below, rejected, 0.1).item()
    (up,) = torch.autograd.grad(dpop_loss(above, rejected, 0.1, 50.0), above)
    (down,) = torch.autograd.grad(dpop_loss(below, rejected, 0.1, 50.0), below)
    inside = 0.1 * (-0.5 + 2.0 - 50 * 0.5)
    assert up.item() == pytest.approx(-0.1 / (1 + math.exp(0.1 * 2.5)))
    assert down.item() == pytest.approx(-0.1 * (1 + 50) / (1 + math.exp(inside)))
    assert dpop_loss(below, rejected, 0.1, 0.0).item() == dpo_loss(below, rejected, 0.1).item()


def test_tdpos_sequential_kl_counts_only_as_a_difference_and_tdpo2_stops_one_of_its_gradients() -> None:
    chosen, rejected, kl_w, kl_l = numbers(1.0), numbers(-1.0), numbers(0.7), numbers(0.7)
    plain = dpo_loss(chosen, rejected, 0.1).item()
    assert tdpo1_loss(chosen, rejected, kl_w, kl_l, 0.1).item() == pytest.approx(plain)  # equal: no difference
    assert tdpo2_loss(chosen, rejected, kl_w, kl_l, 0.1, 0.5).item() == pytest.approx(plain)
    more = numbers(3.0)
    assert tdpo1_loss(chosen, rejected, kl_w, more, 0.1).item() > plain  # drifting along the rejected one costs
    assert tdpo1_loss(chosen, rejected, more, kl_l, 0.1).item() < plain
    assert tdpo2_loss(chosen, rejected, kl_w, more, 0.1, 0.0).item() == pytest.approx(plain)
    both = torch.autograd.grad(tdpo1_loss(chosen, rejected, kl_w, kl_l, 0.1), (kl_w, kl_l))
    slope = 0.1 / (1 + math.exp(0.2))
    assert [g.item() for g in both] == pytest.approx([-slope, slope])
    one = torch.autograd.grad(tdpo2_loss(chosen, rejected, kl_w, kl_l, 0.1, 0.5), (kl_w, kl_l), allow_unused=True)
    assert one[0] is None
    assert one[1].item() == pytest.approx(0.5 * slope)
