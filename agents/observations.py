"""Observations of `LLMText-v0` as policies read them."""

from __future__ import annotations

from stable_baselines3.common.type_aliases import PyTorchObs
from torch import Tensor


def split_observation(obs: PyTorchObs) -> tuple[Tensor, Tensor]:
    """``input_ids`` (N, L) and ``length`` (N,), long."""
    assert isinstance(obs, dict)
    ids = obs["input_ids"].long()
    return ids, obs["length"].long().reshape(len(ids))


def sequences_of(ids: Tensor, lengths: Tensor) -> list[list[int]]:
    """Each row's real tokens; one of token 0 for an idle row."""
    return [row[:n] if n else [0] for row, n in zip(ids.tolist(), lengths.tolist(), strict=True)]
