"""What a run prints where there is no terminal: a line every few iterations, and no long silence."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from agents.runs import display
from agents.runs.display import RunDisplay


def shown(seconds: float, iterations: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The iterations that have a line, where each takes as many seconds."""
    now = 1000.0
    monkeypatch.setattr(display.time, "monotonic", lambda: now)
    text = io.StringIO()
    run = RunDisplay(Console(file=text, width=120), total=1000)
    callback: Any = SimpleNamespace(last={"rollout/rm_score": 1.5, "rollout/kl": 0.25}, tokens_per_second=100.0)
    with run.running(0):
        for i in range(1, iterations + 1):
            now += seconds
            callback.iteration, callback.model = i, SimpleNamespace(num_timesteps=10 * i, _total_timesteps=1000)
            run.show(callback)
    lines = text.getvalue().splitlines()
    assert all("score   1.50  KL  0.25" in line for line in lines)
    return [int(line.split()[1]) for line in lines]


def test_quick_iterations_have_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(0.5, 12, monkeypatch) == [1, 6, 11]


def test_a_slow_iteration_has_a_line_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(30.0, 4, monkeypatch) == [1, 2, 3, 4]
    assert shown(4.0, 8, monkeypatch) == [1, 4, 6]


def test_the_last_iteration_has_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(0.0, 100, monkeypatch)[-1] == 100
