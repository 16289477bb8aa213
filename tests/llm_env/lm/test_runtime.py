"""Linear layers through oneDNN give what torch's own give."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from llm_env.default_task import DEFAULT_MODEL
from llm_env.lm.causal_lm import load_causal_lm
from llm_env.lm.names import LoadSettings
from llm_env.lm.runtime import MIN_WEIGHTS, OneDnnLinear, has_onednn, use_onednn

pytestmark = pytest.mark.skipif(not has_onednn(), reason="this torch has no oneDNN product")


def pair(bias: bool = True) -> tuple[nn.Linear, nn.Linear]:
    """The same layer twice: torch's, and through oneDNN."""
    torch.manual_seed(0)
    plain, fast = nn.Linear(256, 384, bias=bias), nn.Linear(256, 384, bias=bias)
    fast.load_state_dict(plain.state_dict())
    use_onednn(fast)
    assert type(fast) is OneDnnLinear
    assert isinstance(fast, nn.Linear)
    return plain, fast


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 256), (3, 5, 256), (256,)])
def test_values_and_gradients_are_those_of_linear(shape: tuple[int, ...], bias: bool) -> None:
    plain, fast = pair(bias)
    x = torch.randn(shape)
    results = []
    for layer in (plain, fast):
        own = x.clone().requires_grad_()
        out = layer(own)
        (out.sin().sum()).backward()
        results.append([out, own.grad, *(p.grad for p in layer.parameters())])
    for one, other in zip(*results, strict=True):
        assert one.shape == other.shape  # type: ignore[union-attr]
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_frozen_weights_get_no_gradient_and_inputs_still_do() -> None:
    _, fast = pair()
    fast.requires_grad_(False)
    x = torch.randn(4, 256, requires_grad=True)
    fast(x).sum().backward()
    torch.testing.assert_close(x.grad, fast.weight.sum(0).expand(4, -1), rtol=1e-4, atol=1e-4)
    assert fast.weight.grad is None


def test_gradients_have_gradients() -> None:
    def second(layer: nn.Linear) -> torch.Tensor:
        x = torch.linspace(-1, 1, 2 * 256).view(2, 256).requires_grad_()
        (first,) = torch.autograd.grad(layer(x).pow(3).sum(), layer.weight, create_graph=True)
        (result,) = torch.autograd.grad(first.pow(2).sum(), x)
        return result

    plain, fast = pair()
    torch.testing.assert_close(second(plain), second(fast), rtol=1e-3, atol=1e-3)


def test_other_types_and_autocast_go_to_torch() -> None:
    plain, fast = pair()
    x = torch.randn(4, 256)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(plain(x), fast(x))
        assert fast(x).dtype == torch.bfloat16
    plain, fast, x = plain.double(), fast.double(), x.double()
    assert torch.equal(plain(x), fast(x))
    assert fast(x[:0]).shape == (0, 384)


def test_large_layers_of_a_loaded_model_are_changed_and_small_ones_left() -> None:
    lm = load_causal_lm(DEFAULT_MODEL, LoadSettings("float32", "cpu"))
    layers = [m for m in lm.model.modules() if isinstance(m, nn.Linear)]
    assert {type(m) for m in layers if m.weight.numel() >= MIN_WEIGHTS} == {OneDnnLinear}
    assert {type(m) for m in layers if m.weight.numel() < MIN_WEIGHTS} == {nn.Linear}
