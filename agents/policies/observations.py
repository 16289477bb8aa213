"""Observations of `LLMText-v0` as policies read them."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import Tensor

NOT_TOKENS = (
    "{user} reads token ids, which are integers; these are {kind}. VecNormalize rescales observations unless it is given "
    "norm_obs=False."
)


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
        raise TypeError(NOT_TOKENS.format(user=user, kind=ids.dtype))


def split_observation(obs: PyTorchObs) -> tuple[Tensor, Tensor]:
    """``input_ids`` (N, L) and ``length`` (N,), long.

    Raises:
        TypeError: the ids are no integers.
    """
    assert isinstance(obs, dict)
    ids = obs["input_ids"]
    if ids.is_floating_point() and bool((ids != ids.round()).any()):  # SB3's own preprocessing only makes them floats
        raise TypeError(NOT_TOKENS.format(user="The policy", kind=ids.dtype))
    ids = ids.long()
    return ids, obs["length"].long().reshape(len(ids))


def sequences_of(ids: Tensor, lengths: Tensor) -> list[list[int]]:
    """Gives each row's tokens without the padding; for an idle row token 0 alone, because a model cannot read nothing.

    Args:
        ids: Right-padded token ids, shape (N, L).
        lengths: Tokens in each row, shape (N,); 0 for an idle row.
    """
    return [row[:n] if n else [0] for row, n in zip(ids.tolist(), lengths.tolist(), strict=True)]
