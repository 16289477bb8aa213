from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from agents.runs.csv_log import CsvRows
from agents.runs.folder import RunFolder
from agents.runs.prompts import HELD_OUT_FILE, TRAIN_FILE, run_prompts
from agents.runs.settings import FolderSettings, RunSettings, TaskOptions
from llm_env.default_task import DEFAULT_HELDOUT_PROMPTS
from llm_env.text.prompts import read_prompts


def settings(prompts: str | None, eval_prompts: str | None = None) -> RunSettings:
    return RunSettings(task=TaskOptions(prompts=prompts), folder=FolderSettings(eval_prompts=eval_prompts))


def test_the_users_prompts_are_split_once_and_read_again_when_the_run_goes_on(tmp_path: Path) -> None:
    source = tmp_path / "p.txt"
    source.write_text("".join(f"Prompt {i}\n" for i in range(40)))
    folder = tmp_path / "run"
    first = run_prompts(settings(str(source)), folder, resume=False)
    assert first.split is not None
    assert [len(side) for side in first.split] == [36, 4]
    first.write(folder)
    source.write_text("Another prompt\n")  # the run keeps its own
    again = run_prompts(settings(str(source)), folder, resume=True)
    assert (again.train, again.held_out) == (str(folder / TRAIN_FILE), str(folder / HELD_OUT_FILE))
    assert [read_prompts(again.train), read_prompts(again.held_out)] == [first.train, first.held_out]


def test_of_a_few_prompts_none_is_held_out(tmp_path: Path) -> None:
    source = tmp_path / "p.txt"
    source.write_text("".join(f"Prompt {i}\n" for i in range(5)))
    prompts = run_prompts(settings(str(source)), tmp_path / "run", resume=False)
    assert prompts.train == prompts.held_out
    assert [p.prompt for p in prompts.train] == [f"Prompt {i}" for i in range(5)]
    prompts.write(tmp_path / "run")
    assert [p.name for p in (tmp_path / "run").iterdir()] == [TRAIN_FILE]


def test_prompts_that_the_settings_name_are_not_split(tmp_path: Path) -> None:
    assert run_prompts(settings(None), tmp_path, False).held_out == DEFAULT_HELDOUT_PROMPTS
    named = run_prompts(settings("train.txt", "held_out.txt"), tmp_path, False)
    assert (named.train, named.held_out, named.split) == ("train.txt", "held_out.txt", None)


def test_going_back_drops_what_was_written_after_the_checkpoint(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, resume=True)
    lines = [json.dumps({"timestep": step}) + "\n" for step in (0, 10, 20)]
    folder.samples.write_text("".join(lines) + '{"timestep": 5')  # killed while writing
    rows = CsvRows(folder.progress)
    for step in (10, 20):
        rows.write({"time/total_timesteps": step}, {})
    folder.drop_after(10, rows)
    assert folder.samples.read_text() == "".join(lines[:2])
    assert folder.progress.read_bytes() == b"time/total_timesteps\r\n10\r\n"
    folder.drop_after(-1, rows)  # stopped before its first checkpoint
    assert not folder.samples.exists()
    assert not folder.progress.exists()


def test_a_model_is_there_whole_or_as_it_was(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, resume=True)

    def save(path: Path, text: str) -> None:
        (path / "weights").write_text(text)
        if text == "broken":
            raise OSError("full")

    folder.save_model("best", lambda path: save(path, "one"))
    folder.save_model("best", lambda path: save(path, "two"))
    assert (tmp_path / "best" / "weights").read_text() == "two"
    with pytest.raises(OSError, match="full"):
        folder.save_model("best", lambda path: save(path, "broken"))
    assert (tmp_path / "best" / "weights").read_text() == "two"
    with pytest.raises(FileExistsError, match="is not empty"):
        RunFolder(tmp_path, resume=False)


@pytest.mark.parametrize(
    ("argv", "start"),
    [(["llm-env train", "--seed", "1"], "llm-env train --seed 1"), (["scripts/train.py"], "python")],
)
def test_the_command_can_be_given_again(
    argv: list[str], start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", argv)
    RunFolder(tmp_path, resume=True).note_command()
    (line,) = (tmp_path / "command.txt").read_text().splitlines()
    assert line.startswith(start)
    assert line.endswith(argv[-1])
