"""Training for a number of generated tokens instead of a number of environment steps."""

from __future__ import annotations

from stable_baselines3.common.callbacks import BaseCallback

from agents.callbacks.metrics import TextMetricsCallback


class TokenBudget(BaseCallback):
    """Ends training when a number of tokens has been generated, and lets schedules run over that number.

    Environment steps count idle slots too, and say little about the work done where responses differ in length.

    Args:
        metrics: The callback that counts the tokens; must stand before this one in the list of callbacks.
        tokens: Number of tokens after which no rollout begins. The last one is finished, so that some more are generated.
    """

    def __init__(self, metrics: TextMetricsCallback, tokens: int) -> None:
        super().__init__()
        self.metrics = metrics
        self.budget = tokens
        self._spent = 0
        """Tokens before the rollout under way, whose first step is not to count for it."""

    def _on_training_start(self) -> None:
        # SB3's schedules are functions of 1 - steps / total, which every algorithm sets through this method. The tokens of the
        # rollout under way do not count: the first update has the schedule's start, and the last one is not at its end.
        def by_tokens(num_timesteps: int, total_timesteps: int) -> None:
            self.model._current_progress_remaining = max(0.0, 1.0 - self._spent / self.budget)

        self.model._update_current_progress_remaining = by_tokens  # type: ignore[method-assign]

    def _on_rollout_start(self) -> None:
        self._spent = self.metrics.total_tokens

    def _on_training_end(self) -> None:
        # The class's own method counts again.
        vars(self.model).pop("_update_current_progress_remaining", None)

    def _on_step(self) -> bool:
        # A rollout that was begun is finished: training may end at its first step only. On-policy loops count from 0,
        # off-policy loops from 1.
        first = self.locals.get("n_steps") == 0 or self.locals.get("num_collected_steps") == 1
        return not (first and self._spent >= self.budget)
