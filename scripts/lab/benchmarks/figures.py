"""Pictures of benchmark results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.ticker import ScalarFormatter

from agents.figures import DPI, new_figure

COLORS = {"generate": "#4477aa", "score": "#ccbb44", "train": "#ee6677"}


def draw_times(results: list[dict[str, Any]], path: Path) -> None:
    """Draws bars: seconds of an iteration, split into phases, with a panel for each case."""
    heights = [len(r["contenders"]) + 1.5 for r in results]
    figure = new_figure(8, 0.42 * sum(heights) + 0.6)
    panels = figure.subplots(len(results), 1, height_ratios=heights, squeeze=False)
    for panel, result in zip(panels[:, 0], results, strict=True):
        names = list(result["contenders"])[::-1]
        left = [0.0] * len(names)
        for phase, color in COLORS.items():
            widths = [result["contenders"][name]["seconds"][phase] for name in names]
            panel.barh(names, widths, left=left, color=color, label=phase)
            left = [a + b for a, b in zip(left, widths, strict=True)]
        for y, (name, end) in enumerate(zip(names, left, strict=True)):
            rate = result["contenders"][name]["tokens_per_second"]
            panel.text(end, y, f" {rate:,.0f} tokens/s", va="center", fontsize=8)
        panel.set_xlim(0, max(left) * 1.2)
        panel.set_title(result["name"], fontsize=9, loc="left")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0, 0].legend(fontsize=8, loc="lower right")
    panels[-1, 0].set_xlabel("seconds an iteration")
    figure.savefig(path, dpi=DPI)


def draw_curve(results: list[dict[str, Any]], field: str, path: Path) -> None:
    """Draws lines: tokens per second, and the time as a multiple of ours, against one field of the case."""
    figure = new_figure(9, 3.6)
    rates, ratios = figure.subplots(1, 2)
    label = {"response": "response length, tokens", "batch": "n_envs"}[field]
    for contender in dict.fromkeys(c for r in results for c in r["contenders"]):
        having = [r for r in results if contender in r["contenders"]]
        x = [r["case"][field] for r in having]
        rows = [r["contenders"] for r in having]
        rates.plot(x, [row[contender]["tokens_per_second"] for row in rows], "o-", label=contender)
        if contender != "ours" and all("ours" in row for row in rows):
            over = [row[contender]["seconds"]["total"] / row["ours"]["seconds"]["total"] for row in rows]
            ratios.plot(x, over, "o-", label=f"{contender} / ours")
            for place, value in zip(x, over, strict=True):
                text = f"{value:.2g}" if value < 10 else f"{value:.0f}"
                ratios.annotate(text, (place, value), fontsize=8, xytext=(0, 5), textcoords="offset points")
    for panel in (rates, ratios):
        panel.set_xscale("log", base=2)
        panel.set_xlabel(label)
        panel.set_xticks([r["case"][field] for r in results], [str(r["case"][field]) for r in results])
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(fontsize=8)
    rates.set_ylabel("tokens per second, training included")
    rates.set_yscale("log", base=2)
    rates.yaxis.set_major_formatter(ScalarFormatter())
    ratios.set_ylabel("time, as a multiple of ours")
    ratios.set_ylim(bottom=0)
    figure.savefig(path, dpi=DPI)
