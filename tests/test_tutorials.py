"""The tutorials as scripts, each in an empty folder: they run offline, and what they print shows that a model learned."""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT

FOLDER = ROOT / "docs" / "tutorials"
TUTORIALS = sorted(path.stem for path in FOLDER.glob("*.py"))
NUMBER = r"([+-]?\d+(?:\.\d+)?)"
Check = Callable[[str], bool]


def numbers(pattern: str, text: str) -> list[float]:
    """What stands where the pattern has its groups, in order."""
    return [float(n) for found in re.findall(pattern, text) for n in ([found] if isinstance(found, str) else found)]


def first_run(said: str) -> bool:
    scores = numbers(rf"iteration +\d+  score +{NUMBER}", said)
    assert "ended: True, score: 1.97" in said
    return len(scores) == 8 and scores[-1] > scores[0] + 0.8


def your_reward(said: str) -> bool:
    lines = said.splitlines()
    columns = next(line.split() for line in lines if "rollout/rm_score" in line)
    rows = [line.split() for line in lines if re.fullmatch(r"[\d. ]+", line)]
    mentions = [float(row[columns.index("rollout/reward/score")]) for row in rows]
    return len(rows) == 24 and mentions[0] < 0.45 and min(mentions[-2:]) > 0.6


def turns(said: str) -> bool:
    before, after = numbers(r"(\d+)% of 200 games won", said)
    actions, states = numbers(r"(\d+) actions.*True\n(\d+) tokens", said)
    return before < 35 and after > 55 and actions < states / 2


def loss_term(said: str) -> bool:
    moved = dict(zip(("neither", "clipping", "penalty"), numbers(rf"policy by {NUMBER} nats", said), strict=True))
    assert "Did you mean 'old_kl_coef'" in said
    assert re.search("is stock PPO: +True", said)
    assert re.search("5 is not: +True", said)
    return moved["penalty"] < moved["clipping"] / 4


def algorithm(said: str) -> bool:
    right, _, wrong = said.partition("of 0.")  # the probe with the KL is the last that the right one learns
    reached = numbers(r"-> ([\d.]+) of", right + "of")
    assert len(reached) == 6
    assert "delayed (" in wrong
    assert "Look at credit" in wrong
    return min(reached[:5]) > 0.5 and "constant (" not in wrong


def preferences(said: str) -> bool:
    about, model, annotator = numbers(r"about (\d+)%", said)
    first, last = (line.split() for line in said.splitlines() if re.fullmatch(r"[-\d. ]+", line))
    return min(about, model) > 60 and annotator > 75 and float(last[1]) > float(first[1]) + 0.5


def dpo(said: str) -> bool:
    gold = {
        n: numbers(NUMBER, line)[-2]
        for n in ("reference", "ppo", "dpo")
        for line in said.splitlines()
        if line.startswith(f"{n} ") and "±" in line
    }
    return gold["ppo"] > gold["reference"] + 0.5 and gold["dpo"] > gold["reference"] + 0.5


def reading(said: str) -> bool:
    table = {
        line.split()[0]: [float(n) for n in line.split()[1:]]
        for line in said.splitlines()
        if re.match(r"\w+( +-?[\d.]+){4}$", line)
    }
    of = {key: dict(zip(("healthy", "fast", "hacked", "blind"), values, strict=True)) for key, values in table.items()}
    assert of["score"]["fast"] < of["score"]["healthy"] - 0.5
    assert of["entropy_loss"]["fast"] > -0.05
    assert of["score"]["hacked"] > 3.0
    assert of["gold"]["hacked"] < of["gold"]["healthy"] - 2.0
    assert of["explained_var"]["blind"] == 0.0
    return of["value_loss"]["blind"] > 1.5 * of["value_loss"]["healthy"]


def two_processes(said: str) -> bool:
    together, other = (float(n) for n in re.findall(r": +(\S+) of the way", said))
    assert "equal bit for bit: True" in said
    return together < 1e-4 and other > 0.1


CHECKS: dict[str, Check] = {
    "01_first_run": first_run,
    "02_your_reward": your_reward,
    "03_turns": turns,
    "04_loss_term": loss_term,
    "05_algorithm": algorithm,
    "06_preferences": preferences,
    "07_dpo_beside_ppo": dpo,
    "08_reading_a_run": reading,
    "09_two_processes": two_processes,
}
"""Whether a tutorial's output shows that what it tells of happened."""


def test_each_tutorial_has_a_check() -> None:
    assert list(CHECKS) == TUTORIALS


@pytest.mark.parametrize("name", TUTORIALS)
def test_tutorials_use_public_names(name: str) -> None:
    """What a package exports, or what a page names; a reader may rely on both."""
    pages = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs").glob("*.md"))
    for node in ast.walk(ast.parse((FOLDER / f"{name}.py").read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or node.module is None:
            continue
        if node.module in ("agents", "llm_env"):
            assert {alias.name for alias in node.names} <= set(importlib.import_module(node.module).__all__)
        elif node.module.split(".")[0] in ("agents", "llm_env"):
            told = [a.name for a in node.names if f"{node.module}.{a.name}" not in pages]
            assert not told, f"{node.module}: no page of docs/ names {told}"


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKS)
def test_a_tutorial_runs_and_its_model_learns(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(FOLDER / f"{name}.py")],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Warning" not in done.stderr, done.stderr[-3000:]
    assert CHECKS[name](done.stdout), done.stdout
