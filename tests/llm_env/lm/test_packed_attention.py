"""Packed sequences: the states and gradients of each sequence alone, in every family, and the ways around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

import llm_env.lm.packed_attention as attention
from agents.policies.critic import enable_checkpointing
from llm_env.lm.causal_lm import attention_span, load_causal_lm
from llm_env.lm.names import LoadSettings
from llm_env.lm.packed_attention import packed_states
from llm_env.lm.packing import pack, pack_ends
from tests.conftest import FAMILIES, SIZE, WIDE

RNG = np.random.default_rng(0)
SEQUENCES = [RNG.integers(3, 1000, n).tolist() for n in (9, 4, 17, 2, 12, 16)]
STARTS = [3, 1, 10, 1, 11, 2]


def gradients(trunk: Any, states: torch.Tensor) -> list[torch.Tensor]:
    trunk.zero_grad()
    # A weight of its own for each state, or what comes back to one could come from any other.
    (states.sin() * torch.linspace(0.5, 2, len(states))[:, None]).sum().backward()
    return [p.grad.clone() for p in trunk.parameters() if p.grad is not None]


@pytest.mark.parametrize("similar", [0.0, 0.8, 1.0])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_states_and_gradients_are_those_of_single_sequences(
    model_folder: Callable[..., str], monkeypatch: pytest.MonkeyPatch, family: str, similar: float
) -> None:
    monkeypatch.setattr(attention, "SIMILAR", similar)
    trunk = load_causal_lm(model_folder(family), LoadSettings("float32", "cpu")).trunk
    batch = pack(SEQUENCES, STARTS, "cpu")
    together = packed_states(trunk, batch)
    assert attention.can_pack(trunk) == (family != "bloom")  # Bloom's alibi needs a batch of its own making
    alone = [trunk(input_ids=torch.tensor([SEQUENCES[i][:-1]])).last_hidden_state[0] for i in batch.order]
    assert [len(a) for a in alone] == list(batch.lengths)
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-4)
    for one, other in zip(gradients(trunk, together), gradients(trunk, torch.cat(alone)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_the_models_own_attention_is_back_afterwards(model_folder: Callable[..., str]) -> None:
    trunk = load_causal_lm(model_folder("llama"), LoadSettings("float32", "cpu")).trunk
    before = trunk.config._attn_implementation
    packed_states(trunk, pack(SEQUENCES, STARTS, "cpu"))
    assert trunk.config._attn_implementation == before
    with pytest.raises(IndexError):  # a token that the model does not have
        packed_states(trunk, pack([[1, 2, 5000, 1], [1, 2]], [1, 1], "cpu"))
    assert trunk.config._attn_implementation == before


def test_gradient_checkpointing_recomputes_what_was_packed(model_folder: Callable[..., str]) -> None:
    def run(checkpointing: bool) -> list[torch.Tensor]:
        trunk = load_causal_lm(model_folder("llama"), LoadSettings("float32", "cpu")).trunk.train()
        if checkpointing:
            enable_checkpointing(trunk)
        first = packed_states(trunk, pack(SEQUENCES, STARTS, "cpu"))
        second = packed_states(trunk, pack(SEQUENCES[:3], STARTS[:3], "cpu"))
        return gradients(trunk, torch.cat([first, second]))

    for one, other in zip(run(False), run(True), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_a_window_shorter_than_a_sequence_is_kept() -> None:
    torch.manual_seed(0)
    config = transformers.MistralConfig(**SIZE, **WIDE, num_key_value_heads=2, sliding_window=6)
    trunk = AutoModelForCausalLM.from_config(config).eval().base_model
    assert attention_span(config) == 6
    batch = pack(SEQUENCES, STARTS, "cpu")
    alone = [trunk(input_ids=torch.tensor([SEQUENCES[i][:-1]])).last_hidden_state[0] for i in batch.order]
    torch.testing.assert_close(packed_states(trunk, batch), torch.cat(alone), rtol=1e-4, atol=1e-4)


def test_no_padding_is_read(model_folder: Callable[..., str]) -> None:
    trunk = load_causal_lm(model_folder("llama"), LoadSettings("float32", "cpu")).trunk
    batch = pack(SEQUENCES, STARTS, "cpu")
    packed_states(trunk, batch)
    read: list[int] = []
    trunk.register_forward_pre_hook(lambda m, a, kw: read.append(kw["input_ids"].numel()), with_kwargs=True)
    packed_states(trunk, batch)
    assert read == [sum(len(s) - 1 for s in SEQUENCES)]


def test_the_ends_of_sequences(model_folder: Callable[..., str]) -> None:
    trunk = load_causal_lm(model_folder("gpt2"), LoadSettings("float32", "cpu")).trunk
    batch = pack_ends(SEQUENCES, "cpu")
    got = packed_states(trunk, batch)[batch.index]
    want = torch.stack([trunk(input_ids=torch.tensor([s])).last_hidden_state[0, -1] for s in SEQUENCES])
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
