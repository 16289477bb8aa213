"""`progress.csv` grows row by row, has the bytes that writing it whole would give, and is mended or named where broken."""

from __future__ import annotations

import csv
import warnings
from pathlib import Path
from typing import Any

import pytest

from agents.runs import csv_log
from agents.runs.csv_log import CsvRows

STEP = "time/total_timesteps"
ROWS: list[dict[str, Any]] = [
    {"rollout/kl": 0.1, STEP: 10},
    {"rollout/kl": 1e-7, STEP: 20},
    {"rollout/kl": 0.3, "eval/kl": 'a "quoted", text', STEP: 30},  # a column comes
    {STEP: 40, "rollout/kl": float("nan")},  # another order, and a column is missing
    {"rollout/kl": 0.5, "train/x": -1, STEP: 50},
]


def written_whole(path: Path, rows: list[dict[str, Any]]) -> bytes:
    """The file as the csv module writes it in one go."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
    return path.read_bytes()


def test_rows_are_appended_and_the_bytes_are_those_of_one_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replaced = []
    replacing = csv_log.replacing
    monkeypatch.setattr(csv_log, "replacing", lambda path: (replaced.append(path), replacing(path))[1])
    rows = CsvRows(tmp_path / "p.csv")
    for count, row in enumerate(ROWS, 1):
        rows.write(row, {})
        assert (tmp_path / "p.csv").read_bytes() == written_whole(tmp_path / "whole.csv", ROWS[:count])
    assert len(replaced) == 3  # where the file began, and where a column came
    for step in range(60, 160, 10):
        rows.write({"rollout/kl": 1.0, STEP: step}, {})
    assert len(replaced) == 3


def test_what_sb3_keeps_from_a_csv_file_is_left_out(tmp_path: Path) -> None:
    rows = CsvRows(tmp_path / "p.csv")
    rows.write({STEP: 1, "a": 2, "b": 3}, {"a": ("csv",), "b": ("tensorboard",)})
    assert rows.names == [STEP, "b"]


@pytest.mark.parametrize("kept", range(1, len(ROWS) + 1))
def test_a_resumed_run_goes_on_with_the_same_bytes(kept: int, tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    whole = written_whole(tmp_path / "whole.csv", ROWS)
    path.write_bytes(whole)
    rows = CsvRows(path)
    rows.drop_after(10 * kept)
    assert len(path.read_bytes().splitlines()) == kept + 1
    for row in ROWS[kept:]:
        rows.write(row, {})
    assert path.read_bytes() == whole


def test_a_row_that_was_cut_anywhere_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    whole = written_whole(tmp_path / "whole.csv", ROWS[:3])
    start = whole.rindex(b"\r\n", 0, -2) + 2
    for end in range(start, len(whole)):
        path.write_bytes(whole[:end])
        rows = CsvRows(path)
        rows.drop_after(20)
        rows.write({name: ROWS[2].get(name) for name in rows.names}, {})
        assert path.read_bytes() == whole, end


def test_all_rows_go_where_the_run_starts_over(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    written_whole(path, ROWS)
    rows = CsvRows(path)
    rows.drop_after(-1)
    rows.write({STEP: 10, "a": 1}, {})
    assert path.read_bytes() == f"{STEP},a\r\n10,1\r\n".encode()


def test_rows_that_the_checkpoint_had_and_the_file_has_not_are_said(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    written_whole(path, ROWS)
    with pytest.warns(UserWarning, match=r"p\.csv ends at timestep 50, the checkpoint is at 70"):
        CsvRows(path).drop_after(70)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CsvRows(path).drop_after(50)
    path.unlink()
    rows = CsvRows(path)
    with pytest.warns(UserWarning, match=r"p\.csv ends at timestep 0, the checkpoint is at 10"):
        rows.drop_after(10)
    rows.write({STEP: 20}, {})
    path.unlink()  # while the run goes on
    rows.write({STEP: 30}, {})
    assert path.read_bytes() == f"{STEP}\r\n30\r\n".encode()


BROKEN: dict[str, tuple[bytes, int]] = {
    "noise": (bytes(range(256)) + b"\r\n", 1),
    "another table": (b"a,b\r\n1,2\r\n", 1),
    "a row too short": (f"a,{STEP}\r\n1\r\n".encode(), 2),
    "a row too long": (f"a,{STEP}\r\n1,2\r\n1,2,3\r\n".encode(), 3),
    "no number": (f"a,{STEP}\r\n1,two\r\n".encode(), 2),
    "an open quote": (f'a,{STEP}\r\n"1,2\r\n'.encode(), 2),
    "a row without cells": (f"a,{STEP}\r\n\r\n".encode(), 2),
    "other line ends": (b"hello\nworld\n", 1),
    "half a header": (b"rollout/kl,time/tot", 1),
    "bytes without a line": (b"\x00\x01\x02", 1),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_file_that_is_no_log_is_named_with_its_line(case: str, tmp_path: Path) -> None:
    path = tmp_path / "progress.csv"
    path.write_bytes(BROKEN[case][0])
    with pytest.raises(
        ValueError, match=rf"progress\.csv, line {BROKEN[case][1]}: this is no row of a run's log"
    ) as error:
        CsvRows(path)
    assert "\n" not in str(error.value)
    assert path.read_bytes() == BROKEN[case][0]


def test_an_empty_file_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "progress.csv"
    path.touch()
    rows = CsvRows(path)
    rows.write({STEP: 10}, {})
    assert path.read_bytes() == f"{STEP}\r\n10\r\n".encode()


def test_a_log_that_an_editor_saved_with_other_line_ends_is_one(tmp_path: Path) -> None:
    path = tmp_path / "progress.csv"
    path.write_bytes(f"a,{STEP}\n1,10\n2,20\n3,3".encode())
    rows = CsvRows(path)
    rows.drop_after(20)
    assert path.read_bytes() == f"a,{STEP}\r\n1,10\r\n2,20\r\n".encode()
