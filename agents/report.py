"""A run's picture: score, KL, entropy and length over the tokens generated."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

PANELS = (
    ("rollout/rm_score", "reward-model score", "rollout/rm_score_std"),
    ("rollout/kl", "KL to the reference (nats per response)", None),
    ("train/entropy_loss", "policy entropy (nats per token)", None),
    ("rollout/response_length", "response length (tokens)", None),
)
GOLD = "rollout/gold_score"


def read_progress(path: Path) -> dict[str, np.ndarray]:
    """The columns of a ``progress.csv``; missing cells are NaN."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = list(rows[0]) if rows else []
    return {name: np.array([float(row[name]) if row[name] else np.nan for row in rows]) for name in names}


def draw_report(progress: Mapping[str, np.ndarray], path: Path, title: str) -> None:
    """Draws one run's four panels.

    Args:
        progress: Columns, as `read_progress` gives them.
        path: PNG to write.
        title: Heading.
    """
    draw_runs([progress], [title], path, title)


def draw_runs(
    runs: Sequence[Mapping[str, np.ndarray]], labels: Sequence[str], path: Path, title: str, legend: bool = False
) -> None:
    """Draws several runs into the same four panels.

    Args:
        runs: Columns of each, as `read_progress` gives them.
        labels: One a run.
        path: PNG to write.
        title: Heading.
        legend: Whether to name the runs in the picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6.5), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    for index, (name, label, spread) in enumerate(PANELS):
        axes = figure.add_subplot(2, 2, index + 1)
        for number, (run, run_label) in enumerate(zip(runs, labels, strict=True)):
            if name not in run:
                continue
            x, y = run["rollout/tokens"], run[name]
            if name == "train/entropy_loss":  # SB3 logs minus the entropy
                y = -y
            colour = f"C{number}"
            axes.plot(x, y, color=colour, label=run_label, linewidth=1.4)
            if spread and len(runs) == 1 and spread in run:
                axes.fill_between(x, y - run[spread], y + run[spread], color=colour, alpha=0.2, linewidth=0)
            if index == 0 and GOLD in run:
                axes.plot(x, run[GOLD], color=colour, linestyle="--", linewidth=1, alpha=0.8)
        axes.set_xlabel("tokens generated")
        axes.set_title(label, fontsize=10)
        axes.grid(alpha=0.3)
        if index == 0 and any(GOLD in run for run in runs):
            axes.set_title("reward-model score (dashed: gold score)", fontsize=10)
        if index == 0 and legend:
            axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)
