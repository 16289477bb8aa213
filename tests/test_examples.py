"""The examples at the size at which they are run."""

from __future__ import annotations

import importlib.util
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
