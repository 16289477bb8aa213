"""The speed patches: oneDNN's layers give what torch's own give, and each patch can be turned off."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from llm_env.default_task import DEFAULT_MODEL
from llm_env.lm.causal_lm import load_causal_lm
from llm_env.lm.names import LoadSettings
from llm_env.lm.onednn import OneDnnLinear, has_onednn
from llm_env.lm.packed_attention import packed_states
from llm_env.lm.packing import pack
from llm_env.lm.runtime import MIN_WEIGHTS, SPEED_PATCHES, active_patches, reuse_freed_memory, use_onednn

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


SEQUENCES = [[5, 6, 7, 8, 9, 10], [11, 12, 13], [14, 15, 16, 17]]


def reading(
    folder: str, value: str | None, monkeypatch: pytest.MonkeyPatch
) -> tuple[set[type], list[int], torch.Tensor]:
    """Under a value of LLM_ENV_FAST: kinds of linear layers, tokens read in the pass, and the states."""
    monkeypatch.delenv("LLM_ENV_FAST", raising=False)
    if value is not None:
        monkeypatch.setenv("LLM_ENV_FAST", value)
    lm = load_causal_lm(folder, LoadSettings("float32", "cpu"))
    batch = pack(SEQUENCES, [1, 1, 1], "cpu")
    packed_states(lm.trunk, batch)  # the first pass also tries whether the model can be packed
    read: list[int] = []
    lm.trunk.register_forward_pre_hook(lambda m, a, kw: read.append(kw["input_ids"].numel()), with_kwargs=True)
    with torch.no_grad():
        states = packed_states(lm.trunk, batch)
    return {type(m) for m in lm.model.modules() if isinstance(m, nn.Linear)}, read, states


def test_the_switch_turns_each_patch_off_and_changes_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    packed, padded = sum(len(s) - 1 for s in SEQUENCES), 3 * (max(map(len, SEQUENCES)) - 1)
    everything = reading(DEFAULT_MODEL, None, monkeypatch)
    assert everything[:2] == ({nn.Linear, OneDnnLinear}, [packed])
    for value, layers, read in [
        ("0", {nn.Linear}, padded),
        ("1", {nn.Linear, OneDnnLinear}, packed),
        ("linear, malloc", {nn.Linear, OneDnnLinear}, padded),
        ("attention", {nn.Linear}, packed),
    ]:
        got = reading(DEFAULT_MODEL, value, monkeypatch)
        assert got[:2] == (layers, [read]), value
        torch.testing.assert_close(got[2], everything[2], rtol=1e-4, atol=1e-4)


def test_the_table_says_what_is_active(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_ENV_FAST", "attention,linear")
    active = {"linear": True, "malloc": False, "attention": True, "prefixes": False, "varlen": False}
    assert active_patches() == active
    monkeypatch.setenv("LLM_ENV_FAST", "prefixes")  # which packed attention alone can read once
    assert not active_patches()["prefixes"]
    monkeypatch.setenv("LLM_ENV_FAST", "prefixes,attention")
    assert active_patches()["prefixes"]
    assert set(SPEED_PATCHES) == set(active_patches())
    assert not reuse_freed_memory()
    monkeypatch.setenv("LLM_ENV_FAST", "0")
    assert not any(active_patches().values())


@pytest.mark.parametrize("value", ["linaer", "linear,", "yes", "2"])
def test_an_unknown_patch_is_named_with_the_choices(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("LLM_ENV_FAST", value)
    with pytest.raises(
        ValueError, match=rf"LLM_ENV_FAST='{value}'.*is not known.*0 \(none\).*linear, malloc, attention"
    ):
        load_causal_lm(DEFAULT_MODEL, LoadSettings("float32", "cpu"))
