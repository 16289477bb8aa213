from __future__ import annotations

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from agents.memory.meter import Meter
from agents.memory.weightless import nbytes


def test_a_storage_counts_from_its_making_to_its_end_once() -> None:
    old = torch.zeros(100, 4)
    with Meter(7) as meter:
        made = torch.zeros(10, 4)  # 160 bytes
        view = made[:5].t()
        old.add_(1)
        old[:3].mul_(2)
        assert meter.now == {"activations": 160}
        del made
        assert meter.now == {"activations": 160}
        del view
        more = torch.ones(5)
    assert meter.now == {"activations": 20}
    assert meter.most == {"activations": 160}
    assert len(more) == 5


def test_kinds_at_the_peak() -> None:
    for mode in (FakeTensorMode(), None):
        with mode or torch.enable_grad():
            weight = torch.zeros(6, 9, requires_grad=True)
            with Meter(9, [weight.shape]) as meter:
                logits = torch.ones(2, 6) @ weight  # 48 and 72 bytes
                logits.sum().backward()
                assert meter.now == {"activations": 0, "logits": 72, "gradients": 216}
            # The sum's gradient, expanded, is one number.
            assert meter.most["gradients"] == 216
            assert meter.most["logits"] >= 72


def test_tied_tensors_are_one() -> None:
    weight = torch.zeros(3, 5)
    assert nbytes([weight, weight, weight.t(), torch.zeros(2)]) == 60 + 8
