"""Regret of sets of settings over cells, and its tables and picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agents.figures import DPI, new_figure
from comparison.figures import spread

Rows = list[dict[str, Any]]
"""Runs: `task`, `tokens`, `kl_coef`, `settings` (the candidate's name), `seed`, `rm_score`, `gold_score` and `kl` of each."""
Cell = tuple[str, int, float]
"""Task, budget in tokens, β."""
REFERENCE = "reference"
"""The candidate that is not trained; its runs belong to a task, whatever the budget and β."""


def objective(row: dict[str, Any]) -> float:
    """J = score - β·KL of a run."""
    return float(row["rm_score"] - row["kl_coef"] * row["kl"])


def by_cell(rows: Rows) -> dict[Cell, dict[str, list[float]]]:
    """J of the seeds, by cell and candidate."""
    cells: dict[Cell, dict[str, list[float]]] = {}
    for row in rows:
        if row["settings"] != REFERENCE:
            cell = (row["task"], row["tokens"], row["kl_coef"])
            cells.setdefault(cell, {}).setdefault(row["settings"], []).append(objective(row))
    return {cell: cells[cell] for cell in sorted(cells)}


def regrets(rows: Rows) -> dict[str, dict[Cell, float]]:
    """How far each candidate's mean J is below the best candidate's, in each cell that it was run in."""
    found: dict[str, dict[Cell, float]] = {}
    for cell, candidates in by_cell(rows).items():
        means = {name: float(np.mean(values)) for name, values in candidates.items()}
        for name, mean in means.items():
            found.setdefault(name, {})[cell] = max(means.values()) - mean
    return found


def below_reference(rows: Rows) -> dict[str, int]:
    """Runs of each candidate whose J is below the reference's, whose KL is 0."""
    reference = {row["task"]: row["rm_score"] for row in rows if row["settings"] == REFERENCE}
    count: dict[str, int] = {}
    for row in rows:
        if row["settings"] != REFERENCE:
            count[row["settings"]] = count.get(row["settings"], 0) + (objective(row) < reference[row["task"]])
    return count


def label(cell: Cell) -> str:
    """A cell in words."""
    task, tokens, beta = cell
    return f"{task}, {tokens // 1000},000 tokens, β {beta:g}"


def regret_table(rows: Rows) -> str:
    """A row for each candidate, best mean regret first: of all cells, the worst, of each task; runs below the reference."""
    found, below = regrets(rows), below_reference(rows)
    tasks = sorted({cell[0] for own in found.values() for cell in own})
    titles = ["settings", "cells", "runs", "mean regret", "worst", "where", *tasks, "runs below the reference"]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    runs = {name: sum(row["settings"] == name for row in rows) for name in found}
    for name in sorted(found, key=lambda n: float(np.mean(list(found[n].values())))):
        own = found[name]
        worst = max(own, key=lambda cell: own[cell])
        cells = [
            name,
            str(len(own)),
            str(runs[name]),
            f"{np.mean(list(own.values())):.3f}",
            f"{own[worst]:.2f}",
            label(worst),
        ]
        for task in tasks:
            values = [value for cell, value in own.items() if cell[0] == task]
            cells.append(f"{np.mean(values):.3f}" if values else "")
        lines.append("| " + " | ".join([*cells, str(below[name])]) + " |")
    return "\n".join(lines) + "\n"


def cell_table(rows: Rows, names: Sequence[str] = ()) -> str:
    """A row for each cell: J of the candidates, or of those named, with the lowest and the highest seed; the best is bold."""
    cells = by_cell(rows)
    names = names or sorted({name for candidates in cells.values() for name in candidates})
    reference = {row["task"]: row["rm_score"] for row in rows if row["settings"] == REFERENCE}
    lines = ["| cell | reference | " + " | ".join(names) + " |", "|---" * (len(names) + 2) + "|"]
    for cell, candidates in cells.items():
        shown = {name: candidates[name] for name in names if name in candidates}
        if not shown:
            continue
        best = max(shown, key=lambda name: float(np.mean(shown[name])))
        texts = [(f"**{spread(shown[n])}**" if n == best else spread(shown[n])) if n in shown else "" for n in names]
        lines.append(f"| {label(cell)} | {reference[cell[0]]:.2f} | " + " | ".join(texts) + " |")
    return "\n".join(lines) + "\n"


def draw(rows: Rows, path: Path, names: Sequence[str] = ()) -> None:
    """Draws score against KL of every run, a panel a task, a color a candidate."""
    tasks = sorted({row["task"] for row in rows})
    names = names or sorted({row["settings"] for row in rows} - {REFERENCE})
    figure = new_figure(4.6 * len(tasks), 4.2)
    panels = figure.subplots(1, len(tasks), squeeze=False)[0]
    for panel, task in zip(panels, tasks, strict=True):
        for index, name in enumerate([REFERENCE, *names]):
            mine = [row for row in rows if row["task"] == task and row["settings"] == name]
            color = "black" if name == REFERENCE else f"C{index - 1}"
            panel.scatter([r["kl"] for r in mine], [r["rm_score"] for r in mine], s=18, color=color, label=name)
        panel.set_title(task)
        panel.set_xlabel("KL to the reference (nats a response)")
        panel.set_ylabel("score on held-out prompts")
        panel.grid(alpha=0.3)
    panels[-1].legend(fontsize=7)
    figure.savefig(path, dpi=DPI)
