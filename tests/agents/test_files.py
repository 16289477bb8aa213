"""Files that are there whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agents.files import original_name, replacing, replacing_folder, write_json, write_text


def test_a_file_is_replaced_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "on" / "the" / "way.txt"
    write_text(path, "one")
    with replacing(path) as partial:
        partial.write_text("tw", encoding="utf-8")
        assert path.read_text(encoding="utf-8") == "one"  # readers see the old one until the end
        partial.write_text("two", encoding="utf-8")
    assert path.read_text(encoding="utf-8") == "two"
    assert [p.name for p in path.parent.iterdir()] == ["way.txt"]


def test_what_was_half_written_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    write_json(path, {"step": 1})

    def crash() -> None:
        with replacing(path) as partial:
            partial.write_text('{"step":', encoding="utf-8")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        crash()
    assert json.loads(path.read_text(encoding="utf-8")) == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["state.json"]


def test_a_folder_is_replaced_file_by_file_when_all_are_written(tmp_path: Path) -> None:
    for text in ("one", "two"):
        with replacing_folder(tmp_path / "best") as partial:
            (partial / "weights").write_text(text)
        assert (tmp_path / "best" / "weights").read_text() == text

    def crash() -> None:
        with replacing_folder(tmp_path / "best") as partial:
            (partial / "weights").write_text("three")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        crash()
    assert (tmp_path / "best" / "weights").read_text() == "two"
    assert [p.name for p in tmp_path.iterdir()] == ["best"]


def test_folders_in_a_folder_are_replaced_too(tmp_path: Path) -> None:
    for text in ("one", "two"):
        with replacing_folder(tmp_path / "actor") as partial:
            (partial / "templates").mkdir()
            (partial / "templates" / "tools.jinja").write_text(text)
        assert (tmp_path / "actor" / "templates" / "tools.jinja").read_text() == text
    assert [p.name for p in tmp_path.iterdir()] == ["actor"]


def test_a_file_under_way_is_known_by_the_name_that_it_will_have(tmp_path: Path) -> None:
    with replacing(tmp_path / "run.json") as partial:
        partial.write_text("{}")
        assert original_name(partial.name) == "run.json"
    assert [original_name(n) for n in ("run.json", ".hidden", "a.partial")] == ["run.json", ".hidden", "a.partial"]
