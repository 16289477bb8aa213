"""What a run shows while it trains: a progress bar on a terminal, a line every few iterations or seconds elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from agents.callbacks.metrics import TextMetricsCallback
from agents.console import say

LINE_EVERY = 5  # iterations
LINE_AFTER = 10.0
"""Seconds without a line after which the next iteration has one: those of dqn and of large models take as long each."""


class RunDisplay:
    """Progress bar or lines of a run.

    Args:
        console: Terminal that progress goes to; without one, some lines are printed.
        total: Timesteps of the whole run.
    """

    def __init__(self, console: Console, total: int) -> None:
        self.console = console
        self.total = total
        self._progress: Progress | None = None
        self._bar: TaskID | None = None
        self._last_line = 0.0
        """When the last line was printed, on `time.monotonic`'s clock."""

    @contextlib.contextmanager
    def running(self, timestep: int) -> Iterator[None]:
        """Shows the bar during a ``with`` block.

        Args:
            timestep: Where the run begins; above 0 where it goes on.
        """
        columns = (
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console, disable=not self.console.is_terminal) as self._progress:
            self._bar = self._progress.add_task("first rollout …", total=self.total, completed=timestep)
            try:
                yield
            finally:
                self._progress = None

    def show(self, callback: TextMetricsCallback) -> None:
        """Shows an iteration's score, KL and speed.

        Args:
            callback: Has the iteration's metrics.
        """
        last, timestep, total = callback.last, callback.model.num_timesteps, callback.model._total_timesteps
        nan = float("nan")
        text = f"score {last.get('rollout/rm_score', nan):6.2f}  KL {last.get('rollout/kl', nan):5.2f}"
        if "rollout/gold_score" in last:
            text += f"  gold {last['rollout/gold_score']:5.2f}"
        text += f"  {callback.tokens_per_second:6.0f} tokens/s"
        if self._progress is not None and self._bar is not None and self.console.is_terminal:
            self._progress.update(self._bar, completed=timestep, description=text)
        elif (
            callback.iteration % LINE_EVERY == 1
            or timestep >= total
            or time.monotonic() - self._last_line >= LINE_AFTER
        ):
            self._last_line = time.monotonic()
            done = timestep / max(1, total)
            say(self.console, f"iteration {callback.iteration:4d}  {done:4.0%}  {text}")
