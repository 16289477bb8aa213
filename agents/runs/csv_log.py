"""A run's `progress.csv`, one row an iteration."""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stable_baselines3.common.logger import KVWriter

from agents.files import replacing

STEP = "time/total_timesteps"
"""The column by which a resumed run knows which rows are from before its checkpoint."""
LINE_END = "\r\n"  # the csv module's


class CsvRows(KVWriter):
    """A writer for SB3's logger that keeps ``progress.csv``: one row each time the log is written.

    A row is appended; nothing but the columns' names stays in memory. A file that is there already is continued, and a column
    that comes later is added to all rows, empty in the earlier ones: only then the file is written again, whole or not at all.

    Args:
        path: Where the CSV file is, or will be; UTF-8, with a header.

    Raises:
        ValueError: the file that is there is no log of a run. A last line without its end is none: a run was killed there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.names = self._read_rows()[0]

    def _read_rows(self) -> list[list[str]]:
        """The file's rows, its header the first, without a last line that was cut off; without a file an empty header.

        Raises:
            ValueError: a line is no row of such a file; it is named.
        """
        data = self.path.read_bytes() if self.path.is_file() else b""
        rows: list[list[str]] = []
        try:
            lines = data.split(b"\n")[:-1]  # behind the last end there is nothing, or half a row
            if data and not lines:  # the header is written whole, with the first row
                raise ValueError("no line with an end")
            for line in lines:
                row = next(csv.reader([line.removesuffix(b"\r").decode("utf-8")], strict=True), [])
                if rows:
                    float(dict(zip(rows[0], row, strict=True))[STEP])
                elif STEP not in row:
                    raise ValueError(f"no column {STEP}")
                rows.append(row)
        except (ValueError, KeyError, csv.Error) as error:  # UnicodeDecodeError is a ValueError
            raise ValueError(
                f"{self.path}, line {len(rows) + 1}: this is no row of a run's log ({error}). Move the file away to go on "
                "without the rows in it."
            ) from error
        return rows or [[]]

    def drop_after(self, timestep: int) -> None:
        """Forgets rows that were written after the checkpoint that the run goes back to.

        Args:
            timestep: The checkpoint's timestep; rows of later ones go. -1: all go.
        """
        if timestep < 0:
            self.path.unlink(missing_ok=True)
            self.names = []
            return
        self.names, *rows = self._read_rows()
        kept = [values for row in rows if float((values := dict(zip(self.names, row, strict=True)))[STEP]) <= timestep]
        last = float(kept[-1][STEP]) if kept else 0.0
        if last < timestep:
            warnings.warn(
                f"{self.path} ends at timestep {last:.0f}, the checkpoint is at {timestep}: the rows between are lost.",
                stacklevel=2,
            )
        self._rewrite(kept)

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Adds a row; the arguments are SB3's."""
        row = {k: v for k, v in key_values.items() if "csv" not in (key_excluded.get(k) or ())}
        new = [name for name in row if name not in self.names]
        if new or not self.path.is_file():
            names, *old = self._read_rows()
            self.names += new
            self._rewrite([*(dict(zip(names, values, strict=True)) for values in old), row])
            return
        # One write of the whole line: whoever reads the file meanwhile, and a run that is killed, have it or have a beginning.
        with self.path.open("ab") as file:
            file.write(csv_lines(self.names, [row]).encode("utf-8"))

    def _rewrite(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Writes the header and rows, whole or not at all."""
        if not self.names:
            return
        with replacing(self.path) as partial:
            header = dict(zip(self.names, self.names, strict=True))
            partial.write_bytes(csv_lines(self.names, [header, *rows]).encode("utf-8"))

    def close(self) -> None:
        """Nothing stays open."""


def csv_lines(names: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows as CSV, values in the order of `names`; empty where a row has none."""
    text = io.StringIO(newline="")
    csv.DictWriter(text, names, lineterminator=LINE_END).writerows(rows)
    return text.getvalue()
