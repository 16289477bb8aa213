from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agents.cli import train
from agents.runs.imports import import_nothing_from
from tests.agents.cli.test_train import QUICK, ROLLOUT


@pytest.fixture(autouse=True)
def _clean_imports() -> Iterator[None]:
    path, finders, modules = sys.path[:], sys.meta_path[:], set(sys.modules)
    yield
    sys.path[:], sys.meta_path[:] = path, finders
    for name in set(sys.modules) - modules:
        if name.startswith("from_the_run") or name == "runs" or name.startswith("runs."):
            del sys.modules[name]


@pytest.mark.parametrize("module", ["from_the_run", "runs.stranger.from_the_run"])
def test_a_resumed_run_imports_nothing_from_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], module: str
) -> None:
    """Somebody else's run, with a reward function of its own, that is started in its folder or above it."""
    folder = tmp_path / "runs" / "stranger"
    arguments = ["--output-dir", str(folder), "--total-timesteps", str(ROLLOUT * 2), *QUICK]
    assert train.main([*arguments, "--reward-model", "tests.conftest:count_dots"]) == 0
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("tests.conftest:count_dots", f"{module}:score"))
    (folder / "run.json").unlink()  # it would tell that the settings were edited
    proof = tmp_path / "executed"
    (folder / "from_the_run.py").write_text(f"open({str(proof)!r}, 'w')\ndef score(p, r): return [0.0] * len(r)\n")
    monkeypatch.chdir(folder if module == "from_the_run" else tmp_path)
    capfd.readouterr()
    assert train.main(["--resume", str(folder), "--total-timesteps", str(ROLLOUT * 3)]) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"error: reward_model='{module}:score': module '{module}' cannot be imported")
    assert f"lies in the run's folder {folder}, from which a resumed run imports nothing" in line
    assert not proof.exists()


def test_other_folders_are_imported_from_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "from_the_run_beside.py").write_text("x = 1\n")
    before = len(sys.meta_path)
    import_nothing_from(tmp_path / "run")
    import_nothing_from(tmp_path / "run" / ".." / "run")
    assert len(sys.meta_path) == before + 1
    monkeypatch.syspath_prepend(str(tmp_path))
    assert importlib.import_module("from_the_run_beside").x == 1
