"""Prefixes that sequences have in common: which tokens are read, and that states and gradients stay what they were."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch

import llm_env.lm.packed_attention as attention
from agents.policies.critic import enable_checkpointing
from llm_env.lm.causal_lm import load_causal_lm
from llm_env.lm.names import LoadSettings
from llm_env.lm.packed_attention import packed_states
from llm_env.lm.packing import pack, pack_ends
from llm_env.lm.prefixes import LEAST_SAVED, shared_prefixes
from tests.conftest import FAMILIES
from tests.llm_env.lm.test_packed_attention import gradients

RNG = np.random.default_rng(0)
PROMPT, OTHER = RNG.integers(3, 1000, 12).tolist(), RNG.integers(3, 1000, 7).tolist()


def after(prompt: list[int], n: int) -> list[int]:
    return [*prompt, *RNG.integers(3, 1000, n).tolist()]


# Two prompts, one of which goes on for several responses as another did; a text that is there twice, and one by itself.
TURN = after(PROMPT, 4)
SEQUENCES = [
    *(after(PROMPT, 5), after(OTHER, 9), after(TURN, 3), after(TURN, 6), TURN, TURN),
    *(after(OTHER, 2), after([], 10)),
]
DIFFERENT = len({tuple(s[:n]) for s in SEQUENCES for n in range(1, len(s) + 1)})


def prefixes(sequences: list[list[int]]) -> list[tuple[int, ...]]:
    """For each token of sequences that are laid end to end, everything up to it."""
    return [tuple(s[: n + 1]) for s in sequences for n in range(len(s))]


@pytest.mark.parametrize("seed", range(20))
def test_a_token_is_read_once_for_all_that_begin_with_it(seed: int) -> None:
    rng = np.random.default_rng(seed)
    # Two different tokens, so that much is shared, at every depth.
    sequences = [rng.integers(0, 2, rng.integers(1, 9)).tolist() for _ in range(12)]
    shared = shared_prefixes(sequences)
    assert shared is not None
    of_token = prefixes(sequences)
    assert len(shared.first) == len(set(of_token))
    assert [of_token[place] for place in shared.first[shared.which]] == of_token
    assert (np.diff(shared.first) > 0).all()
    assert all(of_token.index(of_token[place]) == place for place in shared.first)
    # Of some of the sequences alone it is the same as if there had been no others.
    ends = [0, *itertools.accumulate(map(len, sequences))]
    part, alone = shared.part(ends[3], ends[10]), prefixes(sequences[3:10])
    assert len(part.first) == len(set(alone))
    assert [alone[place] for place in part.first[part.which]] == alone


def test_where_little_is_shared_everything_is_read() -> None:
    sequences = [[1, *range(i, i + 9)] for i in (100, 200, 300)]
    assert shared_prefixes(sequences) is None  # 2 of 30
    sequences[1][:3] = sequences[2][:3] = sequences[0][:3]
    shared = shared_prefixes(sequences)  # 6 of 30
    assert shared is not None
    assert len(shared.first) == 24 <= (1 - LEAST_SAVED) * 30
    assert shared_prefixes([[5, 6, 7]]) is None


@pytest.mark.parametrize("similar", [0.0, 0.8])
@pytest.mark.parametrize("family", FAMILIES)
def test_states_and_gradients_are_those_of_single_sequences(
    model_folder: Callable[..., str], monkeypatch: pytest.MonkeyPatch, family: str, similar: float
) -> None:
    monkeypatch.setattr(attention, "SIMILAR", similar)
    trunk = load_causal_lm(model_folder(family), LoadSettings("float32", "cpu")).trunk
    batch = pack_ends(SEQUENCES, "cpu")
    assert attention.can_pack(trunk) == (family != "bloom")
    read: list[int] = []
    hook = trunk.register_forward_pre_hook(lambda m, a, kw: read.append(kw["input_ids"].numel()), with_kwargs=True)
    together = packed_states(trunk, batch)
    hook.remove()
    assert read == [DIFFERENT if family != "bloom" else len(SEQUENCES) * max(map(len, SEQUENCES))]
    alone = torch.cat([trunk(input_ids=torch.tensor([SEQUENCES[i]])).last_hidden_state[0] for i in batch.order])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
    for one, other in zip(gradients(trunk, together), gradients(trunk, alone), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_checkpointed_layers_and_parts_of_a_batch_share_too(model_folder: Callable[..., str]) -> None:
    def run(checkpointing: bool, most: int) -> list[torch.Tensor]:
        trunk = load_causal_lm(model_folder("llama"), LoadSettings("float32", "cpu")).trunk.train()
        if checkpointing:
            enable_checkpointing(trunk)
        batch = pack(SEQUENCES, [1] * len(SEQUENCES), "cpu")
        parts = batch.split(most)
        assert (len(parts) == 1) == (most == 1000)
        states = torch.cat([packed_states(trunk, part)[part.index] for part, _ in parts])
        return gradients(trunk, states[torch.cat([places for _, places in parts]).argsort()])

    want = run(False, 1000)
    for checkpointing, most in ((True, 1000), (False, 40), (True, 40)):
        for one, other in zip(run(checkpointing, most), want, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_equally_long_texts_share_what_they_begin_with(
    model_folder: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trunk = load_causal_lm(model_folder("gpt2"), LoadSettings("float32", "cpu")).trunk
    batch = pack_ends([after(PROMPT, 3) for _ in range(4)], "cpu")
    packed_states(trunk, batch)
    read: list[int] = []
    trunk.register_forward_pre_hook(lambda m, a, kw: read.append(kw["input_ids"].numel()), with_kwargs=True)
    with torch.no_grad():
        got = packed_states(trunk, batch)
        for value, tokens in (("attention", 4 * 15), ("prefixes", 4 * 15), ("attention,prefixes", 12 + 4 * 3)):
            monkeypatch.setenv("LLM_ENV_FAST", value)
            torch.testing.assert_close(packed_states(trunk, batch), got, rtol=1e-4, atol=1e-4)
            assert read[-1] == tokens, value
    assert read[0] == 12 + 4 * 3
