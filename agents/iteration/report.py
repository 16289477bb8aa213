"""The rounds as a table and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agents.figures import DPI, new_figure


def rises(gain: Sequence[float] | None) -> str:
    """Says whether a gain is above 0 by more than the half-width of its interval.

    Args:
        gain: The mean and the half-width of its 95 % interval; None: there is no gain to speak of.
    """
    if gain is None:
        return ""
    return "yes" if gain[0] > gain[1] else "**no**"


def rounds_table(evaluations: Sequence[dict[str, Any]]) -> str:
    """Makes Markdown of two tables: the numbers of each round, and its responses to the first three held-out prompts.

    A round's gain is over the round in the row above, prompt by prompt, with its 95 % interval.

    Args:
        evaluations: One a round, the starting model's first.
    """
    has_gold = all("gold_score" in e for e in evaluations)
    # The numbers, one row a round.
    head = ["round", "score", "gain"]
    if has_gold:
        head += ["gold", "gain", "gold rises by more than its interval"]
    head += ["KL to the first (nats)", "length", "distinct pairs"]
    lines = [f"| {' | '.join(head)} |\n", "|---" * len(head) + "|\n"]
    for e in evaluations:
        cells = [str(e["round"]), f"{e['rm_score']:.2f} ± {e['half_widths']['rm_score']:.2f}", _gain(e.get("rm_gain"))]
        if has_gold:
            cells += [f"{e['gold_score']:.2f} ± {e['half_widths']['gold_score']:.2f}", _gain(e.get("gold_gain"))]
            cells.append(rises(e.get("gold_gain")))
        cells += [f"{e['kl']:.2f}", f"{e['response_length']:.1f}", f"{e['diversity']['distinct_2']:.3f}"]
        lines.append(f"| {' | '.join(cells)} |\n")
    # The responses to the first three prompts, one column a prompt.
    lines.append("\n| round | " + " | ".join(prompt for prompt, _, _ in evaluations[0]["samples"][:3]) + " |\n")
    lines.append("|---" * (1 + len(evaluations[0]["samples"][:3])) + "|\n")
    for e in evaluations:
        texts = [f"{text.strip().replace('|', '/')} ({score:.2f})" for _, text, score in e["samples"][:3]]
        lines.append(f"| {e['round']} | {' | '.join(t.replace(chr(10), ' ') for t in texts)} |\n")
    return "".join(lines)


def _gain(gain: Sequence[float] | None) -> str:
    return "" if gain is None else f"{gain[0]:+.2f} ± {gain[1]:.2f}"


def draw_rounds(evaluations: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """Draws scores over the rounds, and scores against the KL.

    Args:
        evaluations: One a round, the starting model's first.
        path: The PNG file to write.
        title: Start of the figure's heading.
    """
    figure = new_figure(9, 3.8)
    panels = figure.subplots(1, 2)
    numbers = [e["round"] for e in evaluations]
    for name, label in (("rm_score", "the judge's score"), ("gold_score", "gold score")):
        if all(name in e for e in evaluations):
            values, errors = [e[name] for e in evaluations], [e["half_widths"][name] for e in evaluations]
            panels[0].errorbar(numbers, values, errors, marker="o", capsize=3, label=label)
            panels[1].plot([e["kl"] for e in evaluations], values, marker="o", label=label)
    panels[0].set_xlabel("round")
    panels[0].set_xticks(numbers if len(numbers) < 12 else numbers[:: len(numbers) // 10])
    panels[1].set_xlabel("KL to the first model (nats per response)")
    for panel in panels:
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    figure.suptitle(f"{title}: held-out prompts, mean and 95 % interval", fontsize=10)
    figure.savefig(path, dpi=DPI)
