"""Invariant 2: cached decoding equals a full forward, ragged rows and resets included."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from llm_env.lm.causal_lm import CausalLM, load_causal_lm
from llm_env.lm.decoding import CachedDecoder
from llm_env.lm.names import LoadSettings
from llm_env.lm.sampling import check_log_probs, sample_tokens
from tests.conftest import FAMILIES, SIZE, WIDE

LOAD = LoadSettings("float32", "cpu")


def full_forward(lm: CausalLM, ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """One row at a time, unpadded, by the model's own logits."""
    idle = torch.zeros(SIZE["vocab_size"], device=lm.device)
    rows = []
    for row, n in zip(ids.to(lm.device), lengths, strict=True):
        rows.append(lm.model(input_ids=row[None, :n], use_cache=False).logits[0, -1] if n else idle)
    return torch.stack(rows)


class Slots:
    """Prefixes that grow by random tokens, with random ends, restarts and idle times; in turns, by several at once."""

    def __init__(self, n: int, width: int, seed: int, chunks: int = 1) -> None:
        self.chunks = chunks
        self.rng = np.random.default_rng(seed)
        self.ids = torch.full((n, width), SIZE["vocab_size"])
        self.lengths = torch.zeros(n, dtype=torch.long)
        self.width = width
        for slot in range(n):
            self.restart(slot)

    def restart(self, slot: int) -> None:
        n = int(self.rng.integers(1, 9))
        self.ids[slot] = SIZE["vocab_size"]
        self.ids[slot, :n] = torch.from_numpy(self.rng.integers(3, 1000, n))
        self.lengths[slot] = n

    def advance(self) -> None:
        for slot in range(len(self.ids)):
            n = int(self.lengths[slot])
            event = self.rng.random()
            if n == 0:
                if event < 0.3:
                    self.restart(slot)
            elif n == self.width or event < 0.1:
                self.restart(slot)
            elif event < 0.2:
                self.ids[slot], self.lengths[slot] = SIZE["vocab_size"], 0
            elif event < 0.9:  # else: the same prefix is asked about twice
                k = 1 if self.chunks == 1 or event < 0.6 else int(self.rng.integers(1, self.chunks))
                k = min(k, self.width - n)
                self.ids[slot, n : n + k] = torch.from_numpy(self.rng.integers(3, 1000, k))
                self.lengths[slot] = n + k


@pytest.mark.parametrize("family", FAMILIES)
def test_cached_equals_full_forward_on_ragged_rows(model_folder: Callable[..., str], family: str) -> None:
    lm = load_causal_lm(model_folder(family), LOAD)
    decoder = CachedDecoder(lm, 48)
    slots = Slots(6, 48, seed=3)
    with torch.no_grad():
        for _ in range(40):
            got = lm.logits(decoder.hidden(slots.ids, slots.lengths))
            busy = slots.lengths > 0
            want = full_forward(lm, slots.ids, slots.lengths)
            torch.testing.assert_close(got[busy], want[busy], rtol=1e-4, atol=1e-4)
            slots.advance()
    assert decoder.use_cache, "the family fell back to decoding without a cache"


def test_rows_that_only_grow_are_decoded_one_token_at_a_time(model_folder: Callable[..., str]) -> None:
    lm = load_causal_lm(model_folder("llama"), LOAD)
    decoder = CachedDecoder(lm, 48)
    ids = torch.randint(3, 1000, (4, 20))
    read: list[int] = []
    lm.trunk.register_forward_pre_hook(lambda m, a, kw: read.append(kw["input_ids"].numel()), with_kwargs=True)
    for n in range(5, 20):
        decoder.hidden(ids, torch.full((4,), n))
    assert read[-15:] == [20] + [4] * 14


def test_a_prompt_that_several_slots_have_is_read_once(model_folder: Callable[..., str]) -> None:
    lm = load_causal_lm(model_folder("llama"), LOAD)
    decoder = CachedDecoder(lm, 48)
    ids = torch.randint(3, 1000, (8, 20))
    ids[1], ids[4, :5], ids[6] = ids[0], ids[2, :5], ids[2]
    lengths = torch.tensor([7, 7, 9, 5, 5, 0, 9, 9])  # 4 begins as 2 does, and ends sooner
    assert decoder.ready()
    read: list[int] = []
    lm.trunk.register_forward_pre_hook(lambda m, a, kw: read.append(len(kw["input_ids"])), with_kwargs=True)
    for step in range(4):  # what each slot goes on with is its own
        read.clear()
        hidden = decoder.hidden(ids, lengths)
        assert read == [5 if step == 0 else 8]  # then a bucket of rows
        got, busy = lm.logits(hidden), lengths > 0
        torch.testing.assert_close(got[busy], full_forward(lm, ids, lengths)[busy], rtol=1e-4, atol=1e-4)
        lengths[busy] += 1


def test_finished_rows_leave_the_batch(model_folder: Callable[..., str]) -> None:
    lm = load_causal_lm(model_folder("llama"), LOAD)
    decoder = CachedDecoder(lm, 48)
    ids = torch.randint(3, 1000, (8, 20))
    lengths = torch.full((8,), 5)
    decoder.hidden(ids, lengths)
    read: list[int] = []
    lm.trunk.register_forward_pre_hook(lambda m, a, kw: read.append(kw["input_ids"].numel()), with_kwargs=True)
    lengths[2:] = 0
    lengths[:2] = 6
    decoder.hidden(ids, lengths)
    assert read == [2]


def test_another_batch_size_in_between_does_no_harm(model_folder: Callable[..., str]) -> None:
    lm = load_causal_lm(model_folder("gpt2"), LOAD)
    decoder = CachedDecoder(lm, 48)
    ids = torch.randint(3, 1000, (4, 20))
    decoder.hidden(ids, torch.full((4,), 5))
    decoder.hidden(ids[:1] + 1, torch.tensor([9]))
    got = lm.logits(decoder.hidden(ids, torch.full((4,), 6)))
    torch.testing.assert_close(got, full_forward(lm, ids, torch.full((4,), 6)), rtol=1e-4, atol=1e-4)


def test_clear_forgets_what_old_weights_said(model_folder: Callable[..., str]) -> None:
    lm = load_causal_lm(model_folder("llama"), LOAD)
    decoder = CachedDecoder(lm, 48)
    ids, lengths = torch.randint(3, 1000, (2, 20)), torch.tensor([5, 7])
    decoder.hidden(ids, lengths)
    with torch.no_grad():
        for parameter in lm.model.parameters():
            parameter.add_(0.05)
    stale = lm.logits(decoder.hidden(ids, lengths + 1))
    decoder.clear()
    fresh = lm.logits(decoder.hidden(ids, lengths + 1))
    want = full_forward(lm, ids, lengths + 1)
    torch.testing.assert_close(fresh, want, rtol=1e-4, atol=1e-4)
    assert (stale - want).abs().max() > 1e-2  # the test can see a stale cache


@pytest.mark.parametrize("family", ["short_window", "gemma2"])
def test_others_fall_back_to_no_cache_and_say_so_once(caplog: pytest.LogCaptureFixture, family: str) -> None:
    if family == "short_window":
        config = transformers.MistralConfig(**SIZE, **WIDE, num_key_value_heads=2, sliding_window=8)
    else:
        config = transformers.Gemma2Config(**SIZE, **WIDE, num_key_value_heads=2, head_dim=8, sliding_window=8)
    torch.manual_seed(0)
    lm = CausalLM(AutoModelForCausalLM.from_config(config).eval(), family)
    decoder = CachedDecoder(lm, 32)
    ids = torch.randint(3, 1000, (3, 32))
    with caplog.at_level(logging.WARNING), torch.no_grad():
        for n in range(14, 18):
            lengths = torch.tensor([n, n - 3, 0])
            got = lm.logits(decoder.hidden(ids, lengths))
            torch.testing.assert_close(got[:2], full_forward(lm, ids, lengths)[:2], rtol=1e-4, atol=1e-4)
    assert sum("without a cache" in r.message for r in caplog.records) == 1


def test_sampling_never_draws_what_is_forbidden_and_follows_the_distribution() -> None:
    logits = torch.tensor([[-torch.inf, 1.0, -torch.inf, 0.0, -torch.inf]]).expand(40_000, -1)
    tokens, log_probs = sample_tokens(logits, generator=torch.Generator().manual_seed(0))
    shares = torch.bincount(tokens, minlength=5) / len(tokens)
    assert shares[[0, 2, 4]].tolist() == [0, 0, 0]
    assert shares[1].item() == pytest.approx(torch.sigmoid(torch.tensor(1.0)).item(), abs=0.01)
    torch.testing.assert_close(log_probs, torch.log_softmax(logits, -1).gather(1, tokens[:, None])[:, 0])
    rare = torch.full((1, 200_000), 0.0)  # the last of many, each of probability 5e-6
    last = [sample_tokens(rare, generator=torch.Generator().manual_seed(s))[0].item() for s in range(200)]
    assert max(last) > 190_000
    assert min(last) < 10_000


def test_a_row_of_nan_gives_a_token_and_a_log_prob_that_says_so() -> None:
    """An index behind the last token would be an error on a CPU, and stop a GPU for the rest of the process."""
    logits = torch.zeros(3, 7)
    logits[1, 4] = torch.nan
    tokens, log_probs = sample_tokens(logits, generator=torch.Generator().manual_seed(0))
    assert tokens.max() < 7
    assert torch.isnan(log_probs).tolist() == [False, True, False]
    check_log_probs(log_probs.numpy()[[0, 2]])
    with pytest.raises(FloatingPointError, match="logits are NaN"):
        check_log_probs(log_probs.numpy())


@pytest.mark.parametrize("family", FAMILIES)
def test_chunks_equal_a_full_forward(model_folder: Callable[..., str], family: str) -> None:
    """Invariant 2 with turns: rows grow by several tokens at once, each by another number, while others go on."""
    lm = load_causal_lm(model_folder(family), LOAD)
    decoder = CachedDecoder(lm, 64)
    slots = Slots(6, 64, seed=4, chunks=9)
    with torch.no_grad():
        for _ in range(40):
            got = lm.logits(decoder.hidden(slots.ids, slots.lengths))
            want = full_forward(lm, slots.ids, slots.lengths)
            busy = slots.lengths > 0
            torch.testing.assert_close(got[busy], want[busy], rtol=1e-3, atol=1e-3)
            slots.advance()
    assert decoder.use_cache
    assert decoder._reads_chunks == (family != "bloom")  # its positions need a mask of two dimensions


def test_a_chunk_is_read_once(model_folder: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokens that are read are those that are new, not the whole conversation again."""
    lm = load_causal_lm(model_folder("llama"), LOAD)
    decoder = CachedDecoder(lm, 64)
    ids = torch.randint(3, 1000, (2, 64), generator=torch.Generator().manual_seed(0))
    decoder.hidden(ids, torch.tensor([20, 30]))
    decoder.hidden(ids, torch.tensor([22, 30]))  # the first chunk: it is tried whether the model can
    read: list[tuple[int, ...]] = []
    real = lm.hidden

    def counted(input_ids: torch.Tensor, **kwargs: Any) -> Any:
        read.append(tuple(input_ids.shape))
        return real(input_ids, **kwargs)

    monkeypatch.setattr(lm, "hidden", counted)
    decoder.hidden(ids, torch.tensor([29, 30]))
    decoder.hidden(ids, torch.tensor([32, 35]))
    decoder.hidden(ids, torch.tensor([33, 35]))
    assert read == [(1, 7), (2, 5), (2, 1)]
