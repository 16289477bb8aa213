"""Invariant 3: packed log-probs and entropies equal those of one sequence at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.distributions import Categorical

from llm_env.lm.causal_lm import CausalLM, load_causal_lm
from llm_env.lm.log_probs import head_log_probs
from llm_env.lm.names import LoadSettings
from llm_env.lm.packed_attention import packed_states
from llm_env.lm.packing import micro_batches, pack
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
        hidden = packed_states(lm.trunk, batch)[batch.index]
        log_probs, entropies = head_log_probs(lm, hidden, batch.targets, temperature)
        want_log_probs, want_entropies = one_at_a_time(lm, temperature)
    torch.testing.assert_close(log_probs, want_log_probs, rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(entropies, want_entropies, rtol=1e-4, atol=2e-5)


def test_parts_of_a_batch_hold_everything_once() -> None:
    batch = pack(SEQUENCES, STARTS, "cpu")
    for limit in (1, 12, 20, 1000):
        parts = batch.split(limit)
        assert sorted(torch.cat([places for _, places in parts]).tolist()) == list(range(len(batch.targets)))
        for part, places in parts:
            assert len(part.input_ids) == sum(part.lengths)
            assert len(part.input_ids) <= limit or len(part.lengths) == 1
            assert torch.equal(part.targets, batch.targets[places])
            assert torch.equal(part.input_ids[part.index], batch.input_ids[batch.index[places]])
            assert sum(part.counts) == len(places)


def test_micro_batches_hold_everything_once_within_the_limit() -> None:
    lengths = RNG.integers(1, 40, 50).tolist()
    groups = list(micro_batches(lengths, 100))
    assert sorted(i for g in groups for i in g) == list(range(50))
    assert all(max(lengths[i] for i in g) * len(g) <= 100 for g in groups)


def test_a_first_token_cannot_be_scored() -> None:
    with pytest.raises(ValueError, match="start of 0"):
        pack([[1, 2]], [0], "cpu")


def test_places_score_some_tokens_and_read_no_further() -> None:
    """The tokens between are read and not scored; what stands behind the last scored one is not read."""
    places = [[3, 4, 7], [1], [2, 10, 11], [1], [5]]
    batch = pack(SEQUENCES, places, "cpu")
    assert batch.counts == (3, 1, 3, 1, 1)
    assert batch.targets.tolist() == [s[p] for s, chosen in zip(SEQUENCES, places, strict=True) for p in chosen]
    assert batch.lengths == (11, 7, 5, 1, 1)
    before = [s[p - 1] for s, chosen in zip(SEQUENCES, places, strict=True) for p in chosen]
    assert batch.input_ids[batch.index].tolist() == before
    for part, which in batch.split(12):
        assert part.targets.tolist() == batch.targets[which].tolist()
        assert part.input_ids[part.index].tolist() == [before[i] for i in which.tolist()]
    whole = pack(SEQUENCES, STARTS, "cpu")
    same = pack(SEQUENCES, [list(range(s, len(t))) for s, t in zip(STARTS, SEQUENCES, strict=True)], "cpu")
    assert torch.equal(whole.index, same.index)
    assert torch.equal(whole.input_ids, same.input_ids)
    with pytest.raises(ValueError, match="start of 0"):
        pack(SEQUENCES, [[0, 2], *places[1:]], "cpu")
