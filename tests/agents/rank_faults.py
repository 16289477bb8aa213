"""A reward function that, as it is imported, arranges for one rank to fall at one place of a run.

Which, `FALL` in the environment says: ``rank:phase:call:how``.
"""

from __future__ import annotations

import itertools
import os
import signal
import time
from typing import Any

PHASES = {
    "collecting": ("agents.rollouts.buffer", "TokenRolloutBuffer", "add"),
    "scoring": ("agents.rollouts.buffer", "TokenRolloutBuffer", "compute_returns_and_advantage"),
    "training": ("agents.distributed", "Ranks", "_end_backward"),
    "logging": ("agents.runs.joint_log", "JointLogger", "dump"),
    "saving": ("agents.runs.run", "TrainingRun", "save"),
}


def fall(how: str) -> None:
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "hangs":
        time.sleep(3600)
    if how == "hangs in C":
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        time.sleep(3600)
    raise AssertionError("the reward's own mistake")


def arrange(phase: str, after: int, how: str) -> None:
    """Has the phase's function fall at the call with this number."""
    import importlib

    module, cls, name = PHASES[phase]
    owner = getattr(importlib.import_module(module), cls)
    original = getattr(owner, name)
    calls = 0

    def falling(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == after:
            fall(how)
        return original(*args, **kwargs)

    setattr(owner, name, falling)


if "FALL" in os.environ:
    rank, phase, after, how = os.environ["FALL"].split(":")
    if os.environ.get("RANK") == rank:
        arrange(phase, int(after), how)


def count_dots(prompts: list[str], responses: list[str]) -> list[float]:
    return [float(r.count(".")) for r in responses]


_calls = itertools.count()
_golds = iter([0.0, 1.0, 2.0, 3.0, 4.0, 3.0, *[-5.0] * 8])


def rising(prompts: list[str], responses: list[str]) -> list[float]:
    """A score that rises from call to call."""
    return [dots + next(_calls) for dots in count_dots(prompts, responses)]


def falling(prompts: list[str], responses: list[str]) -> list[float]:
    """A gold score that rises for five rollouts, and then falls."""
    gold = next(_golds)
    return [gold for _ in responses]
