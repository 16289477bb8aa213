"""What makes an algorithm that several processes have built alike one algorithm; with one process nothing happens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from agents.distributed import ranks
from agents.rollouts.vec_env import text_env


class AgreedThreshold(float):
    """Stands for `target_kl`: ``approx_kl > 1.5 * target_kl``, as a stock `train` says it, is decided for all ranks together.

    Args:
        value: `target_kl`, in nats per token.
        share: Gives this rank's share of the mini-batch whose KL is compared.
    """

    __array_ufunc__ = None  # numpy's numbers leave the comparison to this class then
    share: Callable[[], float]

    def __new__(cls, value: float, share: Callable[[], float]) -> AgreedThreshold:
        """Makes the number."""
        threshold = super().__new__(cls, value)
        threshold.share = share
        return threshold

    def __rmul__(self, factor: float) -> AgreedThreshold:
        """Keeps the class: SB3 compares with 1.5 times the setting."""
        return AgreedThreshold(factor * float(self), self.share)

    def __lt__(self, approx_kl: Any) -> bool:
        """Whether the KL of all ranks' mini-batch is above it."""
        return float(ranks().add([self.share() * float(approx_kl)])[0]) > float(self)


def distribute(model: Any, seed: int | None) -> None:
    """Makes an algorithm that every rank has built alike one of several.

    Args:
        model: The algorithm, on an `LLMTextVecEnv` with this rank's slots.
        seed: The run's seed, with which all ranks built it.
    """
    me = ranks()
    if not me.several:
        return
    if me.shards:  # the weights come from rank 0 already
        model.save = refuse_to_save
    else:
        me.send_weights(model.policy)
    text_env(model.env).batch.part = (me.rank, me.world)
    # Only now, so that new weights and the prompts' order are the same everywhere, and what is sampled is not.
    streams = np.random.SeedSequence([seed or 0, me.rank]).generate_state(2)
    torch.manual_seed(int(streams[0]))
    np.random.seed(int(streams[1]))
    if getattr(model, "target_kl", None) is not None:
        model.target_kl = AgreedThreshold(model.target_kl, lambda: model.rollout_buffer.share)


def refuse_to_save(*args: Any, **kwargs: Any) -> None:
    """Stands for SB3's `save` where weights are in shards, of which it would write this process's.

    Raises:
        ValueError: always.
    """
    raise ValueError(
        "model.save cannot be used with sharding='full': each process would write its part of the weights. "
        "agents.save_checkpoint, called in all processes, writes all of it; a run's actor/ is whole too."
    )
