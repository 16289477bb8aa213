"""Observations of `LLMText-v0` as policies read them."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import Tensor


def check_observation_space(user: str, space: spaces.Space[Any]) -> None:
    """Refuses other environments' observations, and token ids that are no integers.

    Args:
        user: The class that reads the observations, for errors.
        space: The observation space that it was given.

    Raises:
        TypeError: the space is not `LLMText-v0`'s.
    """
    if not isinstance(space, spaces.Dict) or set(space) != {"input_ids", "length"}:
        raise TypeError(f"{user} is for LLMText-v0's observations, not for {space}.")
    ids = space["input_ids"]
    if not np.issubdtype(ids.dtype, np.integer):  # type: ignore[arg-type]  # every Box has one
        raise TypeError(
            f"{user} reads token ids, which are integers; these are {ids.dtype}. VecNormalize rescales observations unless "
            "it is given norm_obs=False."
        )


def split_observation(obs: PyTorchObs) -> tuple[Tensor, Tensor]:
    """``input_ids`` (N, L) and ``length`` (N,), long."""
    assert isinstance(obs, dict)
    ids = obs["input_ids"].long()
    return ids, obs["length"].long().reshape(len(ids))


def sequences_of(ids: Tensor, lengths: Tensor) -> list[list[int]]:
    """Gives each row's tokens without the padding; for an idle row token 0 alone, because a model cannot read nothing.

    Args:
        ids: Right-padded token ids, shape (N, L).
        lengths: Tokens in each row, shape (N,); 0 for an idle row.
    """
    return [row[:n] if n else [0] for row, n in zip(ids.tolist(), lengths.tolist(), strict=True)]
