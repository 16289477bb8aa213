from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from agents.rollouts.buffer import TokenRolloutBuffer
from agents.rollouts.minibatches import balanced_groups
from llm_env.lm.packing import PackedBatch

V, L = 50, 12
OBS = spaces.Dict({"input_ids": spaces.Box(0, V, (L,), np.int64), "length": spaces.Box(0, L, (1,), np.int64)})


def observation(rows: list[list[int]]) -> dict[str, np.ndarray]:
    ids = np.full((len(rows), L), V)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    return {"input_ids": ids, "length": np.array([[len(r)] for r in rows])}


def filled(**kwargs: Any) -> TokenRolloutBuffer:
    """Slot 0: an episode of two tokens, idle, and then one of one that goes on. Slot 1: four tokens that go on."""
    buffer = TokenRolloutBuffer(4, OBS, spaces.Discrete(V), "cpu", gae_lambda=1.0, gamma=1.0, n_envs=2, **kwargs)
    steps = [
        ([[1, 2], [3]], [5, 10], [0.5, 1.0], [True, True], [0.1, 1.0]),
        ([[1, 2, 5], [3, 10]], [6, 11], [2.0, 1.0], [False, False], [0.2, 1.0]),
        ([[], [3, 10, 11]], [0, 12], [0.0, 1.0], [True, False], [0.0, 1.0]),
        ([[4], [3, 10, 11, 12]], [7, 13], [3.0, 1.0], [False, False], [0.3, 1.0]),
    ]
    for rows, actions, rewards, starts, values in steps:
        buffer.add(
            observation(rows), np.array(actions), np.array(rewards), np.array(starts),
            torch.tensor(values)[:, None], torch.tensor([-0.5, -0.25]),
        )  # fmt: skip
    buffer.compute_returns_and_advantage(torch.tensor([[10.0], [20.0]]), np.array([False, False]))
    return buffer


def test_segments_hold_each_prompt_and_token_once() -> None:
    buffer = filled()
    assert [(s.context, s.actions, s.finished) for s in buffer.segments] == [
        ([1, 2], [5, 6], True),
        ([3], [10, 11, 12, 13], False),
        ([4], [7], False),
    ]
    assert buffer.full


def test_returns_by_hand() -> None:
    buffer = filled()
    # λ = γ = 1: returns are sums of rewards, and of the next value where the segment goes on
    np.testing.assert_allclose(buffer.returns, [2.5, 2.0, 24.0, 23.0, 22.0, 21.0, 13.0], rtol=1e-6)
    np.testing.assert_allclose(buffer.advantages, buffer.returns - buffer.values, rtol=1e-5)
    np.testing.assert_allclose(buffer.values, [0.1, 0.2, 1, 1, 1, 1, 0.3], rtol=1e-6)


def test_whitening_is_over_the_whole_rollout() -> None:
    advantages = filled(whiten_advantages=True).advantages
    assert advantages.mean() == pytest.approx(0, abs=1e-6)
    assert advantages.std() == pytest.approx(1, abs=1e-5)


def test_minibatches_are_whole_segments_with_their_own_numbers() -> None:
    buffer = filled()
    seen = []
    np.random.seed(0)
    for batch in buffer.get(4):
        packed = batch.observations
        assert isinstance(packed, PackedBatch)
        assert len(batch.actions) <= 4
        assert torch.equal(batch.actions, packed.targets)
        for token, value, target in zip(batch.actions, batch.old_values, batch.returns, strict=True):
            seen.append((int(token), round(float(value), 4), round(float(target), 4)))
    want = [
        (5, 0.1, 2.5),
        (6, 0.2, 2.0),
        (10, 1.0, 24.0),
        (11, 1.0, 23.0),
        (12, 1.0, 22.0),
        (13, 1.0, 21.0),
        (7, 0.3, 13.0),
    ]
    assert sorted(seen) == sorted(want)


def test_groups_are_within_the_batch_size_and_nearly_equal() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        lengths = rng.integers(1, 33, 64)
        groups = balanced_groups(lengths, rng.permutation(64), 256)
        sizes = [int(lengths[g].sum()) for g in groups]
        assert sorted(i for g in groups for i in g) == list(range(64))
        assert max(sizes) <= 256
        assert max(sizes) - min(sizes) <= 32  # no rest of a few tokens
        assert len(groups) <= -(-int(lengths.sum()) // 256) + 1


def test_a_batch_size_below_a_response_is_refused() -> None:
    with pytest.raises(ValueError, match=r"batch_size=3 tokens is less than a response of 4"):
        next(iter(filled().get(3)))


def test_a_rollout_without_tokens_is_refused() -> None:
    buffer = TokenRolloutBuffer(1, OBS, spaces.Discrete(V), "cpu", n_envs=1)
    buffer.add(observation([[]]), np.array([0]), np.array([0.0]), np.array([True]), torch.zeros(1, 1), torch.zeros(1))
    with pytest.raises(RuntimeError, match="no tokens"):
        buffer.compute_returns_and_advantage(torch.zeros(1, 1), np.array([False]))


def test_other_observations_are_refused() -> None:
    with pytest.raises(TypeError, match="LLMText-v0"):
        TokenRolloutBuffer(1, spaces.Box(0, 1, (3,)), spaces.Discrete(2))
