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


def frontier(rows: Rows) -> list[tuple[float, float]]:
    """Mean KL and mean score over the seeds, one point for each β, by rising KL."""
    points: dict[float, Rows] = {}
    for row in rows:
        points.setdefault(row["kl_coef"], []).append(row)
    return sorted(
        (float(np.mean([r["kl"] for r in own])), float(np.mean([r["rm_score"] for r in own])))
        for own in points.values()
    )


def draw(rows: Rows, path: Path, names: Sequence[str] = ()) -> None:
    """Draws score against KL, a panel for each task and budget: a point for each run, a line through the means of each β."""
    tasks = sorted({row["task"] for row in rows})
    budgets = sorted({row["tokens"] for row in rows if row["settings"] != REFERENCE})
    shown = [(t, n) for n in budgets for t in tasks if any((r["task"], r["tokens"]) == (t, n) for r in rows)]
    names = names or sorted({row["settings"] for row in rows} - {REFERENCE})
    columns = min(len(shown), 4)
    lines = -(-len(shown) // columns)
    figure = new_figure(4.6 * columns, 4.2 * lines)
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    for panel in panels[len(shown) :]:
        panel.axis("off")
    for panel, (task, tokens) in zip(panels, shown, strict=False):
        for index, name in enumerate([REFERENCE, *names]):
            mine = [row for row in rows if row["task"] == task and row["settings"] == name]
            if name != REFERENCE:
                mine = [row for row in mine if row["tokens"] == tokens]
            color = "black" if name == REFERENCE else f"C{index - 1}"
            panel.scatter([r["kl"] for r in mine], [r["rm_score"] for r in mine], s=12, color=color, alpha=0.6)
            panel.plot(*zip(*frontier(mine), strict=True) if mine else ((), ()), "o-", color=color, label=name)
        panel.set_title(f"{task}, {tokens // 1000},000 tokens")
        panel.set_xlabel("KL to the reference (nats a response)")
        panel.set_ylabel("score on held-out prompts")
        panel.grid(alpha=0.3)
    panels[0].legend(fontsize=7)
    figure.savefig(path, dpi=DPI)
