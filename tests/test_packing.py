"""Invariant 3: packed log-probs and entropies equal those of one sequence at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.distributions import Categorical

import llm_env.packing as packing
from llm_env.models import CausalLM, LoadSettings, load_causal_lm
from llm_env.packing import head_log_probs, micro_batches, pack
from tests.conftest import FAMILIES

RNG = np.random.default_rng(0)
SEQUENCES = [RNG.integers(3, 1000, n).tolist() for n in (9, 4, 17, 2, 12)]
STARTS = [3, 1, 10, 1, 11]


def one_at_a_time(lm: CausalLM, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    log_probs, entropies = [], []
    for sequence, start in zip(SEQUENCES, STARTS, strict=True):
        logits = lm.model(input_ids=torch.tensor([sequence]), use_cache=False).logits[0].float() / temperature
        for t in range(start, len(sequence)):
            distribution = Categorical(logits=logits[t - 1])
            log_probs.append(distribution.log_prob(torch.tensor(sequence[t])))
            entropies.append(distribution.entropy())
    return torch.stack(log_probs), torch.stack(entropies)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_equals_one_at_a_time(model_folder: Callable[..., str], family: str, temperature: float) -> None:
    lm = load_causal_lm(model_folder(family), LoadSettings("float32", "cpu"))
    batch = pack(SEQUENCES, STARTS, "cpu")
    with torch.no_grad():
        hidden = batch.select(lm.hidden(batch.input_ids, use_cache=False).last_hidden_state)
        log_probs, entropies = head_log_probs(lm, hidden, batch.targets, temperature)
        want_log_probs, want_entropies = one_at_a_time(lm, temperature)
    torch.testing.assert_close(log_probs, want_log_probs, rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(entropies, want_entropies, rtol=1e-4, atol=2e-5)


def test_chunks_change_neither_values_nor_gradients(
    model_folder: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = load_causal_lm(model_folder("llama"), LoadSettings("float32", "cpu"))
    batch = pack(SEQUENCES, STARTS, "cpu")

    def gradients(chunk_elements: int) -> list[torch.Tensor]:
        monkeypatch.setattr(packing, "HEAD_CHUNK_ELEMENTS", chunk_elements)
        lm.model.zero_grad()
        hidden = batch.select(lm.hidden(batch.input_ids, use_cache=False).last_hidden_state)
        log_probs, entropies = head_log_probs(lm, hidden, batch.targets, 1.0)
        (log_probs.sum() + 0.1 * entropies.sum()).backward()
        return [p.grad.clone() for p in lm.model.parameters() if p.grad is not None]

    whole, chunked = gradients(2**25), gradients(3 * 1024)
    assert len(whole) == len(chunked) > 5
    for one, other in zip(whole, chunked, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_micro_batches_hold_everything_once_within_the_limit() -> None:
    lengths = RNG.integers(1, 40, 50).tolist()
    groups = list(micro_batches(lengths, 100))
    assert sorted(i for g in groups for i in g) == list(range(50))
    assert all(max(lengths[i] for i in g) * len(g) <= 100 for g in groups)


def test_a_first_token_cannot_be_scored() -> None:
    with pytest.raises(ValueError, match="start of 0"):
        pack([[1, 2]], [0], "cpu")
