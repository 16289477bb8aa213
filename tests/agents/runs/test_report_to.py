from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from agents.cli import train
from agents.runs.report_to import WRITERS, writers
from agents.runs.settings import REPORTS
from llm_env.extras import installed
from tests.conftest import ROOT

SMALL = ["--n-envs", "4", "--max-new-tokens", "4", "--n-samples", "0", "--checkpoint-every", "1", "--device", "cpu"]


class Recorder(ModuleType):
    """A stand-in for the module of a service: what was begun, sent and ended."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.begun: list[dict[str, Any]] = []
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.ended = 0
        self.parameters: list[dict[str, str]] = []

    def init(self, **arguments: Any) -> Recorder:  # wandb and trackio
        self.begun.append(arguments)
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        self.rows.append((step, values))

    def finish(self) -> None:
        self.ended += 1

    def set_experiment(self, name: str) -> None:  # MLflow
        assert name == "llm-env"

    def start_run(self, **arguments: Any) -> Any:
        self.begun.append(arguments)
        return SimpleNamespace(info=SimpleNamespace(run_id=arguments["run_id"] or "new"))

    def log_params(self, values: dict[str, str]) -> None:
        self.parameters.append(values)

    def log_metrics(self, values: dict[str, float], step: int) -> None:
        self.log(values, step)

    end_run = finish


def run(folder: Path, *arguments: str) -> int:
    return train.main([*SMALL, "--total-timesteps", "32", "--output-dir", str(folder), *arguments])


@pytest.mark.parametrize("name", WRITERS)
def test_each_row_is_sent_and_a_run_that_goes_on_goes_on_there(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Recorder(name)
    monkeypatch.setitem(sys.modules, name, service)
    folder = tmp_path / "mine"
    assert run(folder, "--report-to", name) == 0
    assert [step for step, _ in service.rows] == [16, 32]
    assert {"rollout/rm_score", "rollout/kl", "time/total_timesteps"} <= service.rows[0][1].keys()
    assert all(type(value) is float for _, row in service.rows for value in row.values())
    assert service.ended == 1
    assert not (folder / "tensorboard").exists()
    told = service.parameters[0] if name == "mlflow" else service.begun[0]["config"]
    assert str(told["n_envs"]) == "4"
    assert train.main(["--resume", str(folder), "--total-timesteps", "48"]) == 0
    assert [step for step, _ in service.rows] == [16, 32, 48]
    known = json.loads((folder / "reports.json").read_text())[name]
    key = {"wandb": "id", "trackio": "name", "mlflow": "run_id"}[name]
    assert service.begun[1][key] == known
    assert name == "mlflow" or service.begun[0][key] == known
    assert len(service.parameters) == (name == "mlflow")  # MLflow refuses parameters that are sent twice


def test_several_and_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    services = {name: Recorder(name) for name in ("wandb", "trackio")}
    for name, service in services.items():
        monkeypatch.setitem(sys.modules, name, service)
    assert run(tmp_path / "both", "--report-to", "wandb", "trackio", "tensorboard") == 0
    assert all(len(service.rows) == 2 for service in services.values())
    assert (tmp_path / "both" / "tensorboard").is_dir()
    assert set(json.loads((tmp_path / "both" / "reports.json").read_text())) == set(services)
    assert run(tmp_path / "none", "--report-to", "none") == 0
    assert not (tmp_path / "none" / "tensorboard").exists()
    assert (tmp_path / "none" / "progress.csv").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["wandb"], "wandb is needed for --report-to wandb and is not installed: pip install 'llm-env[wandb]'"),
        (["mlflow"], "pip install 'llm-env[mlflow]'"),
        (["tensorbord"], "report_to='tensorbord'"),
        (["none", "wandb"], "report_to=['none', 'wandb']: none stands alone."),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_written(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in WRITERS:
        monkeypatch.setitem(sys.modules, name, None)  # importing it fails
    assert run(tmp_path / "run", "--report-to", *arguments) == 1
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


def test_the_services_are_the_names_of_the_setting() -> None:
    assert set(REPORTS) == {*WRITERS, "tensorboard", "none"}
    assert writers(["none"], Path("nowhere"), {}) == []


REAL = """
import sys
from pathlib import Path
from agents.runs.report_to import WRITERS
name, folder = sys.argv[1], Path(sys.argv[2])
for step in (16, 32):  # the second goes on with the first
    writer = WRITERS[name](folder, {"n_envs": 4, "reward_model": None, "judge": ["a", "b"]})
    writer.write({"rollout/kl": 0.5, "text": "x"}, {}, step)
    writer.close()
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITERS)
def test_the_real_package_takes_it_without_a_network(name: str, tmp_path: Path) -> None:
    if not installed(name):
        pytest.skip(f"pip install 'llm-env[{name}]'")
    where = {
        "WANDB_MODE": "offline",
        "MLFLOW_TRACKING_URI": f"file://{tmp_path}/mlruns",
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "TRACKIO_DIR": str(tmp_path / "trackio"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT),
    }
    words = [sys.executable, "-c", REAL, name, str(tmp_path)]
    done = subprocess.run(words, env={**os.environ, **where}, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    made = {"wandb": "wandb/offline-run-*", "mlflow": "mlruns/*/*/metrics/rollout/kl", "trackio": "trackio/*.db"}[name]
    files = list(tmp_path.glob(made))
    assert files
    if name == "mlflow":
        assert [line.split()[-1] for line in files[0].read_text().splitlines()] == ["16", "32"]
