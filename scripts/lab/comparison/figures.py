"""Table and picture of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agents.evaluation.statistics import Estimate
from agents.figures import DPI, new_figure

Results = list[dict[str, Any]]
ORDER = ("reference", "reference_greedy", "best_of_4", "best_of_16")
COLUMNS = (
    "algorithm", "β", "seeds", "score", "gold", "KL (nats)", "score - β·KL", "tokens", "tokens/s", "seconds",
    "above the reference",
)  # fmt: skip
"""The columns of the table."""


def grouped(results: Results) -> dict[tuple[str, float], Results]:
    """Runs by algorithm and β, baselines first, then by mean objective."""
    groups: dict[tuple[str, float], Results] = {}
    for result in results:
        groups.setdefault((result["algo"], result["kl_coef"]), []).append(result)

    def rank(key: tuple[str, float]) -> tuple[Any, ...]:
        objective = np.mean([r["rm_score"] - r["kl_coef"] * r["kl"] for r in groups[key]])
        return (ORDER.index(key[0]) if key[0] in ORDER else len(ORDER), key[1], -objective)

    return {key: groups[key] for key in sorted(groups, key=rank)}


def spread(values: Sequence[float]) -> str:
    """``mean (lowest to highest)`` over the seeds; of a single seed, its value."""
    mean = f"{np.mean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.2f} to {max(values):.2f})"


def score_cell(runs: Results, reference: Results, name: str) -> str:
    """A table's cell of a score: `spread`; of one seed, with the gain over the reference and its 95 % interval."""
    text = spread([r[name] for r in runs])
    if len(runs) > 1 or runs[0]["algo"] == "reference":
        return text
    lift = gain(runs[0], reference, name)
    return text if lift is None else f"{text} ({lift.mean:+.2f} ± {lift.half_width:.2f})"


def gain(run: dict[str, Any], reference: Results, name: str) -> Estimate | None:
    """How much higher a run's score is than its seed's reference, prompt by prompt; None where that was not recorded."""
    same = [r for r in reference if r["seed"] == run["seed"]]
    if not same or "values" not in run or "values" not in same[0]:
        return None
    pairs = zip(run["values"][name], same[0]["values"][name], strict=True)
    return Estimate.of([score - base for score, base in pairs])


def beats(runs: Results, reference: Results) -> str:
    """Whether the runs stand above the reference of their seed: ``yes``, ``**no**``, or empty where that is not known.

    Several seeds: whether the worst one's gain is more than they are apart. One seed: whether its gain is more than the
    half-width of its 95 % interval over the prompts; empty where each prompt's scores were not recorded.
    """
    if len(runs) == 1:
        lift = gain(runs[0], reference, "rm_score")
        return "" if lift is None else "yes" if lift.mean > lift.half_width else "**no**"
    base = {r["seed"]: r["rm_score"] for r in reference}
    gains = [r["rm_score"] - base.get(r["seed"], max(base.values())) for r in runs]
    return "yes" if min(gains) > max(gains) - min(gains) else "**no**"


def markdown_table(results: Results, columns: Sequence[str] = COLUMNS, titles: Mapping[str, str] | None = None) -> str:
    """A row for each algorithm and β, over its seeds; of a single seed, with its gain over the reference, prompt by prompt.

    Args:
        results: The runs, those of the reference among them.
        columns: What is shown, of `COLUMNS`; of all of them those that are empty in each row are left out.
        titles: Other titles of columns, by name.
    """
    groups = grouped(results)
    reference = next((runs for (algo, _), runs in groups.items() if algo == "reference"), [])
    rows = [cells(algo, kl_coef, runs, reference) for (algo, kl_coef), runs in groups.items()]
    shown = [name for name in columns if columns is not COLUMNS or any(row[name] for row in rows)]
    titled = [(titles or {}).get(name, name) for name in shown]
    head, *body = (f"| {' | '.join(line)} |\n" for line in (titled, *([row[name] for name in shown] for row in rows)))
    return "".join([head, "|---" * len(shown) + "|\n", *body])


def cells(algo: str, kl_coef: float, runs: Results, reference: Results) -> dict[str, str]:
    """A row of the table, by the names in `COLUMNS`."""
    speed = [r["tokens_per_second"] for r in runs if r["tokens_per_second"]]
    times = [r["train_seconds"] for r in runs if r.get("train_seconds") is not None]
    baseline = algo in ORDER
    return {
        "algorithm": algo,
        "β": "" if baseline else f"{kl_coef:g}",
        "seeds": str(len(runs)),
        "score": score_cell(runs, reference, "rm_score"),
        "gold": score_cell(runs, reference, "gold_score"),
        "KL (nats)": spread([r["kl"] for r in runs]),
        "score - β·KL": spread([r["rm_score"] - kl_coef * r["kl"] for r in runs]),
        "tokens": "" if baseline else format(np.mean([r["trained_tokens"] for r in runs]), ",.0f"),
        "tokens/s": format(np.median(speed), ".0f") if speed else "",
        "seconds": "" if baseline or not times else format(np.median(times), ".0f"),
        "above the reference": "" if algo == "reference" or not reference else beats(runs, reference),
    }


def samples_table(results: Results, n: int = 3) -> str:
    """A row for each algorithm: its first seed's responses to the first `n` prompts, with the reward model's scores."""
    groups = grouped(results)
    first = next(iter(groups.values()))[0]["samples"][:n]
    lines = [
        "| algorithm | " + " | ".join(prompt for prompt, _, _ in first) + " |\n",
        "|---" * (len(first) + 1) + "|\n",
    ]
    for (algo, kl_coef), runs in groups.items():
        cells = [f"{text.strip().replace('|', '/')} ({score:.2f})" for _, text, score in runs[0]["samples"][:n]]
        lines.append(f"| {algo}{'' if algo in ORDER else f', β {kl_coef:g}'} | " + " | ".join(cells) + " |\n")
    return "".join(lines)


def draw(results: Results, path: Path) -> None:
    """Draws score and gold score against KL, a point for each seed, and the score while training."""
    import matplotlib

    groups = grouped(results)
    figure = new_figure(13, 5.4)
    panels = figure.subplots(1, 3)
    markers = "os^Dv<>ph*XP"
    names = list(dict.fromkeys(algo for algo, _ in groups))
    colors = matplotlib.colormaps["tab20"].colors  # type: ignore[attr-defined]
    for (algo, _), runs in groups.items():
        number = names.index(algo)
        peer, baseline = algo.startswith("trl_"), algo in ORDER
        style: dict[str, Any] = {
            "color": "black" if baseline else colors[number % 20],
            "marker": ("P+*X"[ORDER.index(algo)] if baseline else markers[number % len(markers)]),
            "markerfacecolor": "none" if peer else None,
            "linestyle": "none",
            "markersize": 8 if baseline else 6,
        }
        in_legend = panels[0].get_legend_handles_labels()[1]
        kl = [r["kl"] for r in runs]
        panels[0].plot(kl, [r["rm_score"] for r in runs], label=None if algo in in_legend else algo, **style)
        panels[1].plot(kl, [r["gold_score"] for r in runs], **style)
        curve = np.array([row[:2] for row in runs[0]["curve"]], dtype=float)  # (tokens, score)
        if len(curve):
            line = {"color": style["color"], "linestyle": "--" if peer else "-", "linewidth": 1, "alpha": 0.8}
            panels[2].plot(curve[:, 0], curve[:, 1], **line)
    for panel, title, label in zip(
        panels,
        ("reward-model score", "gold score (not trained on)", "score while training, first seed"),
        ("KL to the reference (nats per response)",) * 2 + ("tokens generated",),
        strict=True,
    ):
        panel.set_title(title, fontsize=10)
        panel.set_xlabel(label)
        panel.grid(alpha=0.3)
    outside = zoom(panels[:2], results)
    if outside:
        panels[0].set_title(f"reward-model score\n(outside the picture: {', '.join(outside)})", fontsize=10)
    panels[2].xaxis.set_major_formatter(lambda tokens, _: f"{tokens / 1000:g}k")
    figure.legend(loc="outside lower center", ncols=7, fontsize=8)
    figure.savefig(path, dpi=DPI)


def zoom(panels: Sequence[Any], results: Results) -> list[str]:
    """Limits the panels of score and gold score to runs above the reference, which one that fell far below would squeeze.

    Returns:
        The algorithms of which a run lies outside.
    """
    floor = min((r["rm_score"] for r in results if r["algo"] == "reference"), default=-1.0)
    edge = 1.25 * max((r["kl"] for r in results if r["algo"] != "reference_greedy"), default=0.0)
    inside = [r for r in results if r["rm_score"] >= floor and (r["kl"] <= edge or r["algo"] != "reference_greedy")]
    for panel, metric in zip(panels, ("rm_score", "gold_score"), strict=True):
        values = [r[metric] for r in inside]
        room = 0.08 * (max(values) - min(values)) + 0.05
        panel.set_xlim(-0.5, 1.05 * max(r["kl"] for r in inside) + 0.5)
        panel.set_ylim(min(values) - room, max(values) + room)
    return sorted({r["algo"] for r in results if r not in inside})
