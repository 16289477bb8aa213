"""What an algorithm logs of its updates, kept beside a run's result."""

from __future__ import annotations

from stable_baselines3.common.callbacks import BaseCallback

from agents import TextMetricsCallback

KEPT = ("explained_variance", "approx_kl", "clip_fraction", "value_loss", "grad_norm")
"""Entries of the log's ``train/``; those that an algorithm does not have are left out."""


class TrainingRecord(BaseCallback):
    """Keeps, for each update, the response tokens so far and what was logged of it, in `rows`.

    Args:
        metrics: Counts the tokens.
    """

    def __init__(self, metrics: TextMetricsCallback) -> None:
        super().__init__()
        self._metrics = metrics
        self.rows: list[dict[str, float]] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        self._note()

    def _on_training_end(self) -> None:
        self._note()

    def _note(self) -> None:
        logged = self.model.logger.name_to_value
        row = {name: float(logged[f"train/{name}"]) for name in KEPT if f"train/{name}" in logged}
        if row:
            self.rows.append({"tokens": float(self._metrics.tokens), **{k: round(v, 6) for k, v in row.items()}})
