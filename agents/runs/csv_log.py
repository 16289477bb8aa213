"""A run's `progress.csv`, one row an iteration."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from stable_baselines3.common.logger import KVWriter


class CsvRows(KVWriter):
    """``progress.csv``: one row a dump; a run that is resumed appends, and new columns are added for all rows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        if path.is_file():
            with path.open(newline="", encoding="utf-8") as file:
                self.rows = list(csv.DictReader(file))

    def drop_after(self, timestep: int) -> None:
        """Forgets rows that lie behind a checkpoint that the run goes back to."""
        self.rows = [row for row in self.rows if float(row["time/total_timesteps"]) <= timestep]

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Adds a row and writes the file anew, whole or not at all."""
        self.rows.append({k: v for k, v in key_values.items() if "csv" not in (key_excluded.get(k) or ())})
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        partial = self.path.with_suffix(".partial")
        with partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(self.rows)
        partial.replace(self.path)

    def close(self) -> None:
        """Nothing stays open."""
