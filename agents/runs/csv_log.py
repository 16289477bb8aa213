"""A run's `progress.csv`, one row an iteration."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from stable_baselines3.common.logger import KVWriter

from agents.files import replacing


class CsvRows(KVWriter):
    """A writer for SB3's logger that keeps ``progress.csv``: one row each time the log is written.

    A file that is there already is continued, and a column that comes later is added to all rows, empty in the earlier ones.

    Args:
        path: Where the CSV file is, or will be; UTF-8, with a header.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        if path.is_file():
            with path.open(newline="", encoding="utf-8") as file:
                self.rows = list(csv.DictReader(file))

    def drop_after(self, timestep: int) -> None:
        """Forgets rows that were written after the checkpoint that the run goes back to.

        Args:
            timestep: The checkpoint's timestep; rows of later ones go.
        """
        self.rows = [row for row in self.rows if float(row["time/total_timesteps"]) <= timestep]

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Adds a row and writes the whole file again, whole or not at all; the arguments are SB3's."""
        self.rows.append({k: v for k, v in key_values.items() if "csv" not in (key_excluded.get(k) or ())})
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        with replacing(self.path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(self.rows)

    def close(self) -> None:
        """Nothing stays open."""
