"""A run's picture: score, KL, entropy and length over the tokens generated."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from agents.figures import DPI, new_figure

PANELS = (
    ("rollout/rm_score", "reward-model score", "rollout/rm_score_std"),
    ("rollout/kl", "KL to the reference (nats per response)", None),
    ("train/entropy_loss", "policy entropy (nats per token)", None),
    ("rollout/response_length", "response length (tokens)", None),
)
"""A panel each: the column of ``progress.csv``, the panel's title, and the column of its standard deviation, if it has one."""
GOLD = "rollout/gold_score"


def read_progress(path: Path) -> dict[str, np.ndarray]:
    """Reads a ``progress.csv``; returns its columns by name, each of shape (n_iterations,), with NaN for empty cells."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = list(rows[0]) if rows else []
    return {name: np.array([float(row[name]) if row[name] else np.nan for row in rows]) for name in names}


def draw_report(progress: Mapping[str, np.ndarray], path: Path, title: str) -> None:
    """Draws a run's four panels.

    Args:
        progress: Columns, as `read_progress` gives them.
        path: The PNG file to write.
        title: Heading of the figure.
    """
    figure = new_figure(10, 6.5)
    figure.suptitle(title, parse_math=False)  # a dollar sign in a folder's name is one
    for index, (name, label, spread) in enumerate(PANELS):
        axes = figure.add_subplot(2, 2, index + 1)
        axes.set_title(label, fontsize=10)
        axes.set_xlabel("tokens generated")
        axes.grid(alpha=0.3)
        if name not in progress:
            continue
        x, y = progress["rollout/tokens"], progress[name]
        if name == "train/entropy_loss":  # SB3 logs minus the entropy
            y = -y
        axes.plot(x, y, color="C0", linewidth=1.4)
        if spread and spread in progress:
            axes.fill_between(x, y - progress[spread], y + progress[spread], color="C0", alpha=0.2, linewidth=0)
        if index == 0 and GOLD in progress:
            axes.plot(x, progress[GOLD], color="C0", linestyle="--", linewidth=1, alpha=0.8)
            axes.set_title(f"{label} (dashed: gold score)", fontsize=10)
    figure.savefig(path, dpi=DPI)
