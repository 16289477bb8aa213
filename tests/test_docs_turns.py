"""The page about turns: its world and its environment are made as they stand there."""

from __future__ import annotations

import re

import pytest

from agents.probes.check import ProbeResult
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "turns.md").read_text(encoding="utf-8")
*WORLD, PROBES = re.findall(r"```python\n(.*?)```", PAGE, re.S)


@pytest.mark.slow
def test_ppo_learns_the_probes_as_the_page_calls_them() -> None:
    names: dict[str, object] = {}
    exec(PROBES, names)
    results: list[ProbeResult] = names["results"]  # type: ignore[assignment]
    assert len(results) == 6
    assert all(result.share > 0.5 for result in results)


def test_the_code_on_the_page_runs() -> None:
    names: dict[str, object] = {}
    for block in WORLD:
        exec(block, names)
    world = names["HigherLower"]()  # type: ignore[operator]
    assert world.reset(seed=0)[0].startswith("Guess")
    answers = [world.step(f"It is {n}") for n in range(1, 7)]
    assert answers[-1][2]
    env = names["env"]
    assert env.reset(seed=0)[1]["prompt"] == "Guess my number from 1 to 20."  # type: ignore[attr-defined]
    names["model"].learn(4 * 48)  # type: ignore[attr-defined]
