"""What the page shows of a run, read from its folder: plain values, as they stand in the page as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from agents.flat_settings import read_yaml, to_flat
from agents.runs.ending import read_ending
from agents.runs.figure import read_progress
from agents.runs.settings import RunSettings

T = TypeVar("T")
MOST_ROWS = 1000
"""Iterations that curves are drawn of; of more, so many that are evenly spread."""
MOST_TIMES = 100
"""Moments whose samples are shown; of more, so many that are evenly spread."""
MOST_RECORDS = 32
"""Samples of a moment that are shown, the first."""
DIGITS = 6
"""Significant digits of a curve's numbers."""


def read_run(folder: Path, name: str | None = None) -> dict[str, Any]:
    """Reads a run's folder, whether the run has ended, goes on or was killed.

    Args:
        folder: The run's folder.
        name: What the page calls it; None: the folder's name.

    Returns:
        ``name``, ``algo``; ``state``: ``empty`` (no iteration has ended), ``unfinished``, ``stopped`` (by an alarm) or
        ``ended``; ``timestep``, ``total`` and ``iterations``; ``columns`` of ``progress.csv`` by name, None for what is not
        there; ``samples``: of each moment ``timestep``, ``iteration`` and ``records`` (lines of ``samples.jsonl``);
        ``settings`` by name, and ``changed``, those that differ from the defaults; ``notes``, sentences.

    Raises:
        FileNotFoundError: there is no run in the folder.
        ValueError: a file there is none of a run's.
    """
    settings = _settings(folder)
    notes: list[str] = []
    path = folder / "progress.csv"
    progress = read_progress(path) if path.is_file() else {}
    steps = progress.get("time/total_timesteps", np.zeros(0))
    timestep = int(steps[-1]) if len(steps) else 0
    total = settings.get("total_timesteps")
    # An actor may be from before a run was told to go on for longer.
    ended = (folder / "actor").is_dir() and (not isinstance(total, int) or timestep >= total)
    kept = spread(range(len(steps)), MOST_ROWS)
    if len(kept) < len(steps):
        notes.append(f"Curves show {len(kept):,} of {len(steps):,} iterations, evenly spread.")
    samples = _samples(folder / "samples.jsonl", steps, notes)
    if not len(steps):
        notes.append("No iteration has ended yet, so there are no curves.")
    if not samples:
        notes.append("There are no samples (--n-samples 0, or the run had no time for them).")
    elif not any("tokens" in record for moment in samples for record in moment["records"]):
        notes.append("The samples have no numbers for each token: the run is from before they were kept.")
    ending = read_ending(folder / "actor")
    stopped = ending is not None and ending.iteration == len(steps)  # else it has gone on since
    if ending is not None and stopped:
        notes.append(f"{ending.sentence()}.")
    defaults = to_flat(RunSettings())
    return {
        "name": name or folder.resolve().name,
        "algo": str(settings["algo"]),
        "state": "ended" if ended else "stopped" if stopped else "unfinished" if len(steps) else "empty",
        "timestep": timestep,
        "total": total,
        "iterations": len(steps),
        "columns": {key: [_plain(values[i]) for i in kept] for key, values in progress.items()},
        "samples": samples,
        "settings": settings,
        "changed": sorted(key for key, value in settings.items() if value != defaults.get(key)),
        "notes": notes,
    }


def _settings(folder: Path) -> dict[str, Any]:
    """The settings in ``config.yaml``, also of versions that had others."""
    path = folder / "config.yaml"
    if not path.is_file():
        raise FileNotFoundError(
            f"{str(folder)!r}: no run there (no config.yaml in it). Name the folder of a training run."
        )
    settings = read_yaml(path)
    if not isinstance(settings, dict) or "algo" not in settings:
        raise ValueError(f"{path}: no settings of a training run (no algo in it). Name the folder of a training run.")
    return {str(key): _json_value(value) for key, value in settings.items()}


def _json_value(value: Any) -> Any:
    """A value from YAML as one of JSON's."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, list):
        return [_json_value(v) for v in value]
    if isinstance(value, dict):
        return {str(k): _json_value(v) for k, v in value.items()}
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def _samples(path: Path, steps: np.ndarray, notes: list[str]) -> list[dict[str, Any]]:
    """The samples by their moments, each with its iteration: the number of rows until then."""
    moments: dict[float, list[dict[str, Any]]] = {}
    lines = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []  # a line without its end is being written
    damaged = 0
    for line in lines:
        try:
            record = _checked(json.loads(line, parse_constant=lambda _: None))  # NaN is no JSON
            moments.setdefault(float(record["timestep"]), []).append(record)
        except (ValueError, KeyError, TypeError):
            damaged += 1
    if damaged:
        notes.append(f"{damaged} of {len(lines)} lines of samples.jsonl cannot be read.")
    kept = spread(sorted(moments), MOST_TIMES)
    if len(kept) < len(moments):
        notes.append(f"Samples of {len(kept)} of {len(moments)} moments are shown, evenly spread.")
    most = max((len(records) for records in moments.values()), default=0)
    if most > MOST_RECORDS:
        notes.append(f"Of each moment the first {MOST_RECORDS} of {most} samples are shown.")
    return [
        {"timestep": int(t), "iteration": int((steps <= t).sum()), "records": moments[t][:MOST_RECORDS]} for t in kept
    ]


def _checked(record: dict[str, Any]) -> dict[str, Any]:
    """A sample's record that the page can show.

    Raises:
        ValueError, KeyError, TypeError: it is none.
    """
    if not isinstance(record["prompt"], str) or not isinstance(record["response"], str):
        raise TypeError("prompt and response are texts")
    tokens = record.get("tokens")
    if tokens is not None:
        lengths = {len(column) for name, column in tokens.items() if name != "world"}
        if lengths != {len(tokens["text"])} or not all(isinstance(text, str) for text in tokens["text"]):
            raise ValueError("columns of one length, texts first")
    return record


def spread(items: Sequence[T], most: int) -> list[T]:
    """At most so many of some items, evenly spread; the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def _plain(value: float) -> float | None:
    """A number of a curve; None for what is not there or not finite."""
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
