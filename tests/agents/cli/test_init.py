from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from agents.cli import init, train
from agents.cli.main import main
from llm_env.text.prompts import read_prompts

FILES = ["README.md", "config.yaml", "prompts.jsonl", "reward.py", "test_reward.py"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    init.write_starter(Path("my-task"))
    return tmp_path / "my-task"


def printed_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    for file in folder.iterdir():
        file.unlink()
    assert init.main(["my-task"]) == 0
    return capsys.readouterr().out.splitlines()[-1]


def test_the_folder_has_the_files_and_the_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = printed_command(folder, capsys)
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert (folder / "README.md").read_text().startswith("# my-task\n")
    assert command == "cd my-task && llm-env train --config config.yaml --output-dir run"
    assert command.partition(" && ")[2] in (folder / "README.md").read_text()


def test_a_folder_with_contents_is_left_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "reward.py").write_text("mine")
    assert init.main(["my-task"]) == 1
    assert "name='my-task' is not empty" in capsys.readouterr().err
    assert (folder / "reward.py").read_text() == "mine"


def test_an_empty_folder_and_one_inside_another_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert init.main(["here"]) == 0
    assert init.main(["a/b"]) == 0
    assert sorted(path.name for path in (tmp_path / "a" / "b").iterdir()) == FILES


def test_a_name_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["init"])
    said = capsys.readouterr().err
    assert said.startswith("error: ")  # in the parser's words, which changed
    assert "required options are missing: path" in said.lower() or "are required: PATH" in said


def test_its_settings_are_right(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    train.check(["--config", "config.yaml", "--output-dir", "run"])
    settings = train.parse(["--config", "config.yaml"]).settings
    records = read_prompts(settings.task.prompts, "prompts")
    assert len(records) == 60
    assert all("wanted" in record.columns for record in records)


@pytest.mark.slow
def test_its_test_passes_and_it_trains(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = printed_command(folder, capsys).partition(" && ")[2]
    here = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_reward.py"]
    done = subprocess.run(words, cwd=folder, env=here, capture_output=True, text=True, check=False)
    assert "3 passed" in done.stdout, done.stdout
    words = [sys.executable, "-m", "agents.cli.main", *shlex.split(command)[1:], "--total-timesteps", "6144"]
    done = subprocess.run(words, cwd=folder, env=here, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Done." in done.stdout
    assert (folder / "run" / "actor" / "model.safetensors").is_file()
    sample = json.loads((folder / "run" / "samples.jsonl").read_text().splitlines()[-1])
    assert sample["rm_score"] <= 1
