"""The examples at the size at which they are run."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_an_environment_of_gymnasium_is_learned_from_its_outcome(capsys: pytest.CaptureFixture[str]) -> None:
    crossed = example("frozen_lake").main(seed=1)
    assert np.mean(crossed[:3]) < 0.1  # a random model
    assert np.mean(crossed[-5:]) > 0.9
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(crossed) + 3
    assert sum(line.startswith("00 -> ") and line.rstrip().endswith("-> 15") for line in lines) >= 2


def test_what_the_lakes_player_says_is_a_move() -> None:
    lake = example("frozen_lake")
    assert [lake.parse(text) for text in ("0", "3", "6", "", "12", "x")] == [0, 3, 2, None, None, None]
    assert lake.describe(7, {}) == "07"


@pytest.mark.slow
def test_one_file_says_what_it_does_and_stops_in_a_line() -> None:
    words = [sys.executable, "-u", str(EXAMPLES / "ppo_single_file.py"), "--num-envs", "2"]
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent)}
    # What a shell starts in the background ignores Ctrl-C, and so would the child.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        child = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, before)
    assert child.stdout is not None
    assert child.stdout.readline() == "312 iterations of 128 tokens, a line each; Ctrl-C stops\n"
    assert child.stdout.readline().startswith("step    128  score")
    for patience in (60, 60, 60):  # Python ignores one that is raised in a destructor or a callback
        child.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            _, said = child.communicate(timeout=patience)
            break
    assert (child.returncode, said.splitlines()[-1]) == (1, "Stopped.")
    assert "Traceback" not in said
