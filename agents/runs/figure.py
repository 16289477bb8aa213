"""A run's picture: score, KL, entropy and length over the tokens generated."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from agents.figures import DPI, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANELS = (
    ("rollout/rm_score", "reward-model score", "rollout/rm_score_std"),
    ("rollout/kl", "KL to the reference (nats per response)", None),
    ("train/entropy_loss", "policy entropy (nats per token)", None),
    ("rollout/response_length", "response length (tokens)", None),
)
"""A panel each: the column of ``progress.csv``, the panel's title, and the column of its standard deviation, if it has one."""
GOLD, ALARMS = "rollout/gold_score", "train/alarms"
LOOKS: tuple[tuple[str, Any], ...] = (
    ("#0072b2", "-"),
    ("#d55e00", (0, (6, 2))),
    ("#009e73", (0, (2, 1.5))),
    ("#b0568a", (0, (7, 2, 2, 2))),
    ("#8a6500", (0, (10, 3))),
    ("#5b5fc7", (0, (3, 1))),
)
"""Color (after Okabe and Ito, which people tell apart who see colors otherwise) and dashes of each of several runs."""


def read_progress(path: Path) -> dict[str, np.ndarray]:
    """Reads a ``progress.csv``, also while a run writes it.

    Returns:
        Its columns by name, each of shape (n_iterations,), with NaN for empty cells.

    Raises:
        ValueError: it is no log of a run.
    """
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]  # a last line without its end is being written
    try:
        names, *rows = list(csv.reader(io.StringIO(whole.decode("utf-8"), newline=""))) or [[]]
        numbers = [[float(cell) if cell else np.nan for cell in row] for row in rows]
        return dict(zip(names, np.array(numbers).reshape(len(rows), len(names)).T, strict=True)) if rows else {}
    except (ValueError, csv.Error) as error:  # UnicodeDecodeError is a ValueError
        raise ValueError(f"{path}: this is no log of a run ({error}).") from error


def draw_report(progress: Mapping[str, np.ndarray], path: Path, title: str) -> None:
    """Draws a run's four panels.

    Args:
        progress: Columns, as `read_progress` gives them.
        path: The PNG file to write.
        title: Heading of the figure.
    """
    _draw({"": progress}, path, title)


def draw_beside(runs: Mapping[str, Mapping[str, np.ndarray]], path: Path) -> None:
    """Draws the four panels with a line for each of several runs.

    Args:
        runs: Columns of each run by its name.
        path: The PNG file to write.
    """
    _draw(runs, path, " · ".join(runs))


def _draw(runs: Mapping[str, Mapping[str, np.ndarray]], path: Path, title: str) -> None:
    """The panels of one run, with its spread, or of several, each in its color and dashes; a dotted line where alarms begin."""
    figure = new_figure(10, 6.5 if len(runs) == 1 else 7)
    figure.suptitle(title, parse_math=False)  # a dollar sign in a folder's name is one
    for index, (column, label, spread) in enumerate(PANELS):
        axes = figure.add_subplot(2, 2, index + 1)
        axes.set_xlabel("tokens generated")
        axes.grid(alpha=0.3)
        with_gold = index == 0 and any(GOLD in progress for progress in runs.values())
        axes.set_title(f"{label} (dashed: gold score)" if with_gold and len(runs) == 1 else label, fontsize=10)
        for number, progress in enumerate(runs.values()):
            if column not in progress:
                continue
            color, dashes = LOOKS[number] if len(runs) > 1 else ("C0", "-")
            x, y = progress["rollout/tokens"], progress[column]
            if column == "train/entropy_loss":  # SB3 logs minus the entropy
                y = -y
            axes.plot(x, y, color=color, linestyle=dashes, linewidth=1.4)
            if len(runs) == 1 and spread and spread in progress:
                axes.fill_between(x, y - progress[spread], y + progress[spread], color="C0", alpha=0.2, linewidth=0)
            alarmed = np.nan_to_num(progress.get(ALARMS, np.zeros(len(x)))) > 0
            begins = x[np.diff(alarmed.astype(int), prepend=0) > 0]
            look: dict[str, Any] = {"color": color if len(runs) > 1 else "#d55e00", "linestyle": ":", "linewidth": 0.9}
            axes.vlines(begins, 0, 1, transform=axes.get_xaxis_transform(), alpha=0.7, **look)
            if len(runs) == 1 and with_gold:
                axes.plot(x, progress[GOLD], color="C0", linestyle="--", linewidth=1, alpha=0.8)
    if len(runs) > 1:
        _name_lines(figure, list(runs))
    figure.savefig(path, dpi=DPI, format="png")


def _name_lines(figure: Figure, names: list[str]) -> None:
    """A legend of all panels, below them."""
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], color=color, linestyle=dashes) for color, dashes in LOOKS[: len(names)]]
    legend = figure.legend(lines, names, loc="outside lower center", ncols=min(3, len(names)), frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
