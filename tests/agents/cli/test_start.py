from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from agents.cli.start import start
from agents.supervised.settings import SFTSettings


def test_ctrl_c_while_libraries_are_imported_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib, "import_module", interrupted)
    assert start("train") == 130
    assert capsys.readouterr().err == "Stopped.\n"


def test_a_stage_that_failed_before_its_first_checkpoint_leaves_its_folder_free(tmp_path: Path) -> None:
    settings = SFTSettings(output_dir=tmp_path, texts="texts.jsonl")
    log = tmp_path / "checkpoints" / "runs" / "today" / "events"
    log.parent.mkdir(parents=True)
    log.write_text("x")
    settings.check()
    with settings.writing():
        assert not log.exists()
    state = tmp_path / "checkpoints" / "checkpoint-1" / "trainer_state.json"
    state.parent.mkdir(parents=True)
    state.write_text("{}")
    with pytest.raises(FileExistsError, match="is not empty"):
        settings.check()
    assert state.exists()
