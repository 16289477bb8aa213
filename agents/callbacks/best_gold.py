"""Keeps the weights whose gold score was the best, so that a run which over-optimizes can end with them."""

from __future__ import annotations

import math
import statistics
from collections import deque
from typing import Any, NamedTuple

from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor

from agents.callbacks.drift import WINDOW
from agents.callbacks.metrics import TextMetricsCallback
from agents.distributed import ranks
from agents.shards import load_from_first, wholes_on_first


class Kept(NamedTuple):
    """Which weights are kept.

    Attributes:
        iteration: The iteration whose update made them; 0: those that the run began with.
        timestep: Environment steps until then, those of all processes.
        gold: The mean gold score of the last `WINDOW` rollouts that these weights and those before them wrote.
    """

    iteration: int
    timestep: int
    gold: float


class BestGold(BaseCallback):
    """Keeps a copy of the policy's weights from when the gold score was best, to go back to after over-optimization.

    By the time that a noisy score has surely fallen, it has been falling for a while (`agents.callbacks.drift`). Whoever ends
    training by the alarm ``gold`` puts the weights of before the fall back::

        best = BestGold(metrics)
        model.learn(steps, callback=[alarms, metrics, best], log_interval=None)
        if alarms.stopped == "gold":
            best.restore()

    The best is the highest mean of `WINDOW` rollouts. A rollout is written by the weights before its update, and that is when
    they are copied: what is kept wrote the last of the best rollouts. The middle of them would do as well, and take a second
    copy. The copy is in the computer's memory, whole, on rank 0, of what the policy's ``state_dict`` has: all its weights, or
    with LoRA the adapters and the critic.

    Args:
        metrics: The callback that has the gold score; must stand *before* this one in the list of callbacks. Without a gold
            score nothing is kept.

    Attributes:
        kept: Which weights are kept; None before there are `WINDOW` rollouts.
        weights: The weights by their names, on rank 0.
    """

    def __init__(self, metrics: TextMetricsCallback) -> None:
        super().__init__()
        self.metrics = metrics
        self.kept: Kept | None = None
        self.weights: dict[str, Tensor] = {}
        self._golds: deque[float] = deque(maxlen=WINDOW)
        """Mean gold scores of the latest rollouts."""
        self._timestep = 0
        """Where the rollout under way began."""

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        self._timestep = self.model.num_timesteps * ranks().world

    def _on_rollout_end(self) -> None:
        gold = self.metrics.last.get("rollout/gold_score")
        if gold is None or not self.metrics.row_is_due:
            return
        self._golds.append(gold)
        if len(self._golds) < WINDOW:
            return
        mean = statistics.fmean(self._golds)
        if mean > (-math.inf if self.kept is None else self.kept.gold):
            self.kept = Kept(self.metrics.iteration, self._timestep, mean)
            self.weights = {}  # not two copies at a time
            self.weights = wholes_on_first(self.model.policy.state_dict())

    def restore(self) -> None:
        """Puts the kept weights into the policy; with several processes all ranks must ask.

        Raises:
            RuntimeError: none are kept.
        """
        if self.kept is None:
            raise RuntimeError(
                f"No weights are kept: it takes {WINDOW} rollouts with a gold score, TextMetricsCallback(gold=…), which stands "
                "before this callback in the list."
            )
        load_from_first(self.model.policy, self.weights)

    def state_dict(self) -> dict[str, Any]:
        """Gives what a resumed run needs besides the weights, in plain values."""
        return {"golds": list(self._golds), "kept": self.kept}

    def load_state_dict(self, state: dict[str, Any], weights: dict[str, Tensor]) -> None:
        """Restores what `state_dict` gave, and the weights, which rank 0 alone has."""
        self._golds.clear()
        self._golds.extend(state["golds"])
        self.kept = state["kept"] and Kept(*state["kept"])
        self.weights = weights
