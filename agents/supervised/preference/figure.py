"""The figure of a preference run: loss, implicit rewards, accuracy and log-probs over the steps."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from agents.figures import DPI, new_figure

COLORS = {"chosen": "C2", "rejected": "C3"}


def draw(log: list[dict[str, Any]], path: Path, reference: bool) -> None:
    """Draws four panels, each in training and held out.

    Args:
        log: `Trainer`'s log: entries with ``step`` and the metrics of TRL's trainers, those of evaluations with ``eval_``.
        path: Picture to write.
        reference: Whether the method has a reference model; it decides what the implicit reward is.
    """
    reward = "implicit reward: β × log ratio to the reference" if reference else "β × log-prob"
    panels = (
        ("loss", ("loss",), "loss"),
        ("share of pairs in the right order", ("rewards/accuracies",), ""),
        (reward, ("rewards/chosen", "rewards/rejected"), "nats × β"),
        ("log-prob of the responses", ("logps/chosen", "logps/rejected"), "nats"),
    )
    figure = new_figure(11, 6)
    for axes, (title, metrics, unit) in zip(figure.subplots(2, 2).flat, panels, strict=True):
        for metric in metrics:
            _draw_metric(axes, log, metric)
        axes.set_title(title, fontsize=10)
        axes.set_ylabel(unit)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
    figure.savefig(path, dpi=DPI)


def _draw_metric(axes: Any, log: list[dict[str, Any]], metric: str) -> None:
    """Draws a metric's two curves, in training (pale) and held out (with dots); steps without a finite value are left out."""
    side = metric.partition("/")[2]
    for prefix, label, style in (("", "training", {"alpha": 0.45}), ("eval_", "held out", {"marker": "."})):
        points = [(e["step"], e[prefix + metric]) for e in log if math.isfinite(e.get(prefix + metric, math.nan))]
        if points:
            label = f"{side}, {label}" if side in COLORS else label
            axes.plot(*zip(*points, strict=True), color=COLORS.get(side, "C0"), label=label, **style)
