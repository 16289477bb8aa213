from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from agents.checksums import damaged_file, set_aside, write_checksums
from agents.output_folder import LOCK_FILE, check_output_folder, empty_folder, has_files, locked


def test_one_process_at_a_time(tmp_path: Path) -> None:
    def second() -> None:
        with locked(tmp_path / "out"):
            raise AssertionError

    with locked(tmp_path / "out"):
        with pytest.raises(FileExistsError, match=r"output_dir='.*out': another process is writing there"):
            second()
        assert not has_files(tmp_path / "out")
    with locked(tmp_path / "out"):
        pass
    (tmp_path / "out" / "x").touch()
    assert has_files(tmp_path / "out")
    assert not has_files(tmp_path / "nothing")


def test_empty_folders_are_nothing_to_go_on_with(tmp_path: Path) -> None:
    """A stage that was killed early leaves them: the next attempt begins, and does not resume."""
    (tmp_path / "training" / "checkpoints").mkdir(parents=True)
    (tmp_path / "training" / LOCK_FILE).touch()
    assert not has_files(tmp_path)
    (tmp_path / "training" / "checkpoints" / "x").touch()
    assert has_files(tmp_path)


def test_an_emptied_folder_keeps_its_lock(tmp_path: Path) -> None:
    (tmp_path / "out" / "deep").mkdir(parents=True)
    (tmp_path / "out" / "deep" / "x").touch()
    with locked(tmp_path / "out"):
        before = (tmp_path / "out" / LOCK_FILE).stat().st_ino
        with pytest.raises(FileExistsError, match="another process"):
            empty_folder(tmp_path / "out")
    assert has_files(tmp_path / "out")
    empty_folder(tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == [LOCK_FILE]
    assert (tmp_path / "out" / LOCK_FILE).stat().st_ino == before


def test_names_that_no_folder_can_have(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for path in (tmp_path / ("n" * 300), tmp_path / "a\0b", tmp_path / "link"):
        with pytest.raises(NotADirectoryError, match="output_dir="):
            check_output_folder(path)


def test_a_process_that_is_killed_leaves_no_lock(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, agents.output_folder as o\n"
        f"with o.locked(pathlib.Path({str(tmp_path)!r})): os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert (tmp_path / LOCK_FILE).exists()
    with locked(tmp_path):
        pass


def test_a_folder_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(NotADirectoryError, match=r"judge_dir='.*': .*file is a file"):
            check_output_folder(path, "judge_dir")
    check_output_folder(tmp_path / "may" / "be" / "made")
    assert not (tmp_path / "may").exists()


def test_damage_is_found_and_set_aside(tmp_path: Path) -> None:
    folder = tmp_path / "step_1"
    for attempt in (1, 2):
        folder.mkdir()
        (folder / "weights").write_text(f"abc{attempt}")
        assert damaged_file(folder) is None  # no checksums yet
        write_checksums(folder)
        assert damaged_file(folder) is None
        (folder / "weights").write_text("abd")
        assert damaged_file(folder) == "weights is not what was written (checksums.json)"
        assert set_aside(folder) == tmp_path / "damaged_step_1"
    assert (tmp_path / "damaged_step_1" / "weights").read_text() == "abd"
