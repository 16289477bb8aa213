"""One kernel for packed sequences: stand-ins on the CPU that agree, differ and fail; the kernel itself in tests/test_gpu.py."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import llm_env.lm.varlen_attention as varlen
from llm_env.lm.causal_lm import load_causal_lm
from llm_env.lm.names import LoadSettings
from llm_env.lm.packed_attention import packed_states
from llm_env.lm.packing import pack
from tests.llm_env.lm.test_packed_attention import SEQUENCES, STARTS, gradients


class StandIn:
    """What torch's kernel computes, one sequence at a time; with `fault`, something else.

    Its signature is the older one, without a flag for fewer heads of keys.
    """

    def __init__(self, fault: str = "") -> None:
        self.fault, self.calls = fault, 0
        self.dtypes: set[torch.dtype] = set()

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cu_seq_q: Tensor,
        cu_seq_k: Tensor,
        max_q: int,
        max_k: int,
        *,
        scale: float | None = None,
        window_size: tuple[int, int] = (-1, -1),
    ) -> Tensor:
        self.calls += 1
        if self.fault == "fails":
            raise RuntimeError("no kernel for heads of this size\nand a long story")
        assert query.shape == key.shape == value.shape
        self.dtypes |= {query.dtype, key.dtype, value.dtype}
        assert cu_seq_q.dtype == torch.int32
        assert max_q == max_k == int(cu_seq_q.diff().max())
        sizes = cu_seq_q.diff().tolist()
        causal = window_size == (-1, 0) and self.fault != "sees ahead"
        out = []
        for q, k, v in zip(*(side.split(sizes) for side in (query, key, value)), strict=True):
            sides = (side.transpose(0, 1)[None] for side in (q, k, v))
            states = torch.nn.functional.scaled_dot_product_attention(*sides, is_causal=causal, scale=scale)
            out.append(states[0].transpose(0, 1))
        joined = torch.cat(out)
        return joined + 0.5 * (joined - joined.detach()) if self.fault == "wrong gradient" else joined


class NewerStandIn(StandIn):
    """The signature of a torch that takes fewer heads of keys as they are."""

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, *args: Any, enable_gqa: bool = False, **kwargs: Any
    ) -> Tensor:  # type: ignore[override]
        if enable_gqa:
            times = query.shape[1] // key.shape[1]
            key, value = (side.repeat_interleave(times, 1) for side in (key, value))
        return super().__call__(query, key, value, *args, **kwargs)


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[StandIn], StandIn]]:
    """Puts a stand-in in the kernel's place, on the CPU and in float32 too."""

    def put(stand_in: StandIn) -> StandIn:
        monkeypatch.setattr(varlen, "kernel", lambda: stand_in)
        monkeypatch.setattr(varlen, "has_kernel_for", lambda query: True)
        return stand_in

    monkeypatch.setattr(varlen, "_WORKS", {})
    return put


@pytest.mark.parametrize("kind", [StandIn, NewerStandIn])
@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2", "gpt_neox"])
def test_states_and_gradients_through_the_kernel(
    model_folder: Callable[..., str], install: Callable[[StandIn], StandIn], family: str, kind: type[StandIn]
) -> None:
    trunk = load_causal_lm(model_folder(family), LoadSettings("float32", "cpu")).trunk
    batch = pack(SEQUENCES, STARTS, "cpu")
    want = packed_states(trunk, batch)
    want_gradients = gradients(trunk, want)
    stand_in = install(kind())
    got = packed_states(trunk, batch)
    assert stand_in.calls == 1 + trunk.config.num_hidden_layers  # the trial, and one for each layer
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    for one, other in zip(gradients(trunk, got), want_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("fails", "failed (RuntimeError: no kernel for heads of this size)"),
        ("sees ahead", "disagrees"),
        ("wrong gradient", "disagrees"),
    ],
)
def test_a_kernel_that_is_wrong_is_left_with_one_line(
    model_folder: Callable[..., str],
    install: Callable[[StandIn], StandIn],
    caplog: pytest.LogCaptureFixture,
    fault: str,
    said: str,
) -> None:
    trunk = load_causal_lm(model_folder("llama"), LoadSettings("float32", "cpu")).trunk
    batch = pack(SEQUENCES, STARTS, "cpu")
    want = packed_states(trunk, batch)
    stand_in = install(StandIn(fault))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert torch.equal(packed_states(trunk, batch), want)
    assert stand_in.calls == 1
    assert len(caplog.messages) == 1
    assert said in caplog.messages[0]


def test_it_can_be_turned_off(
    model_folder: Callable[..., str], install: Callable[[StandIn], StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    trunk = load_causal_lm(model_folder("llama"), LoadSettings("float32", "cpu")).trunk
    stand_in = install(StandIn())
    monkeypatch.setenv("LLM_ENV_FAST", "linear,malloc,attention")
    packed_states(trunk, pack(SEQUENCES, STARTS, "cpu"))
    assert stand_in.calls == 0


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_under_autocast_the_kernel_gets_its_type(
    model_folder: Callable[..., str], install: Callable[[StandIn], StandIn], family: str
) -> None:
    """Rotary positions are float32, and with them queries and keys, but not values."""
    trunk = load_causal_lm(model_folder(family), LoadSettings("float32", "cpu")).trunk
    batch = pack(SEQUENCES, STARTS, "cpu")
    with torch.autocast("cpu", torch.bfloat16):
        want = packed_states(trunk, batch).float()
        stand_in = install(StandIn())
        got = packed_states(trunk, batch).float()
    assert stand_in.dtypes == {torch.bfloat16}
    assert (got - want).abs().max() <= 0.05 * want.abs().max()


def test_under_autocast_there_is_a_kernel_for_float32_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varlen, "kernel", StandIn)
    monkeypatch.setattr(torch, "get_autocast_dtype", {"cuda": torch.bfloat16}.get)
    with FakeTensorMode():  # which has a GPU's tensors anywhere
        query = torch.zeros(1, 2, 3, 8, device="cuda")
    assert not varlen.has_kernel_for(query)
    monkeypatch.setattr(torch, "is_autocast_enabled", {"cuda": True}.get)
    assert varlen.has_kernel_for(query)


def test_a_cpu_has_no_such_kernel() -> None:
    half = torch.zeros(1, 2, 3, 8, dtype=torch.bfloat16)
    assert not varlen.has_kernel_for(half)
    assert not varlen.usable(half, half)


def test_torchs_kernel_takes_what_it_is_given() -> None:
    """Its arguments are those that are passed; what it computes is tried on a GPU."""
    attend = varlen.kernel()
    if attend is None:
        pytest.skip("this torch has no such kernel, or an older one")
    q = torch.zeros(3, 2, 8)
    with pytest.raises(NotImplementedError, match="flash_attention"):  # no kernel, and no TypeError
        varlen.varlen_attention(q, q[:, :1], q[:, :1], varlen.bounds([2, 1], q.device), 2)
