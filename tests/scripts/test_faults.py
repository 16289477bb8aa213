"""A short fault campaign on every change; the long one is `scripts/lab/faults.py` by itself."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from campaign.faults import label
from tests.conftest import ROOT
from tests.mistakes.agents import FILES
from tests.mutations import broken


def campaign(root: Path, out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(root / "scripts" / "lab" / "faults.py"), "--output-dir", str(out), *options]
    return subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_after_every_fault_the_result_is_the_same(tmp_path: Path) -> None:
    only = ("PPO, moving reference", "DQN", "SFT", "collecting preferences")
    done = campaign(ROOT, tmp_path / "faults", "--only", *only, "--kills", "12", "--seed", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    trials = json.loads((tmp_path / "faults" / "trials.json").read_text())
    assert {t["command"] for t in trials} == set(only)
    assert len(trials) > 12 + 4 * 6
    assert sum(t["struck"] for t in trials) > 0.8 * len(trials)
    assert not [t for t in trials if t["problem"]]
    assert "| SIGKILL while a file is half-written |" in (tmp_path / "faults" / "table.md").read_text()


@pytest.mark.slow
def test_a_resume_that_forgets_something_is_found(tmp_path: Path) -> None:
    for name in ("agents", "llm_env", "scripts"):
        shutil.copytree(ROOT / name, tmp_path / "code" / name, ignore=shutil.ignore_patterns("__pycache__"))
    mutation = next(m for m in FILES if m.name == "a resumed run has a fresh optimizer")
    file = tmp_path / "code" / mutation.file
    file.write_text(broken(mutation, file.read_text()))
    done = campaign(tmp_path / "code", tmp_path / "faults", "--only", "PPO", "--kills", "6")
    assert done.returncode == 1
    assert "another result: actor/model.safetensors" in done.stdout


def test_points_of_one_kind_have_one_name() -> None:
    assert label("os.rename", "/runs/a/checkpoints/.partial-step_000000000048") == "rename checkpoints/.partial-step_N"
    assert label("open", "/x/round_2/rankings.jsonl") == label("open", "/x/round_1/rankings.jsonl")
    assert label("llm_env.phase", "update") == "phase update"


def test_a_folder_that_is_there_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import faults

    monkeypatch.setattr(sys, "argv", ["faults.py", "--output-dir", str(tmp_path)])
    assert faults.main() == 1
    assert "exists. Choose a new folder." in capsys.readouterr().out
