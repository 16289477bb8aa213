"""Report on a reward model: accuracy, calibration, length, and its worst mistakes, on held-out preferences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.evaluation.statistics import wilson_interval
from agents.figures import DPI, can_draw, new_figure
from agents.files import write_json, write_text
from agents.preferences.records import Ranking
from llm_env.reward.scores import TextReward

BOOTSTRAPS = 1000
"""Draws of a bootstrap interval: enough for two digits of a 95 % interval."""
FEW_GROUPS = 20
"""Rankings below which a bootstrap over them is not trusted alone."""
BINS = 8
"""Bins of a calibration curve."""


@dataclass(frozen=True)
class JudgedPair:
    """A pair of a held-out ranking, as the reward model scores it.

    Attributes:
        prompt: Text of the prompt; of messages the last one's.
        better: Text of the response that was preferred.
        worse: Text of the other response.
        difference: Raw score of the better response less that of the worse.
        longer: 1 where the better response has more words, -1 where it has fewer, 0 where both have as many.
        group: Number of the ranking that the pair is from.
        gold: Gold score of the better response less that of the worse; None without a gold score.
    """

    prompt: str
    better: str
    worse: str
    difference: float
    longer: int
    group: int
    gold: float | None = None


def judged_pairs(
    rankings: Sequence[Ranking],
    scores: Sequence[dict[str, float]],
    gold: TextReward | None = None,
) -> list[JudgedPair]:
    """Makes all pairs of rankings, with the differences of their scores.

    Args:
        rankings: Held-out rankings.
        scores: For each ranking, the raw score of each response by its id.
        gold: Scores texts, and knows better than the annotators; None: there is none.
    """
    pairs = []
    for group, (ranking, ranking_scores) in enumerate(zip(rankings, scores, strict=True)):
        prompt = ranking.candidates.prompt
        text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
        gold_scores = None if gold is None else _gold_scores(ranking, text, gold)
        for better, worse, _ in ranking.pairs():
            words = len(better.text.split()) - len(worse.text.split())
            pairs.append(
                JudgedPair(
                    text,
                    better.text,
                    worse.text,
                    ranking_scores[better.id] - ranking_scores[worse.id],
                    (words > 0) - (words < 0),
                    group,
                    None if gold_scores is None else gold_scores[better.id] - gold_scores[worse.id],
                )
            )
    return pairs


def _gold_scores(ranking: Ranking, prompt: str, gold: TextReward) -> dict[str, float]:
    """The gold score of each response of a ranking, by its id."""
    responses, columns = ranking.candidates.responses, ranking.candidates.columns
    scores = gold.score_texts([prompt] * len(responses), [r.text for r in responses], [columns] * len(responses))
    return {r.id: score for r, score in zip(responses, scores, strict=True)}


def share_right(differences: NDArray[np.float64]) -> float:
    """Share of differences above 0, each of which is a pair in the right order; a difference of 0 counts one half."""
    return float(np.mean((differences > 0) + 0.5 * (differences == 0)))


def bootstrap_interval(values: NDArray[np.float64], groups: NDArray[np.int64], seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of `share_right`, drawing whole groups: the pairs of one ranking share responses.

    A bootstrap of a few groups knows nothing between them, and of groups that are alike it has no width. So the interval is
    no narrower than Wilson's for as many independent pairs as there are groups, where these are fewer than `FEW_GROUPS`.

    Args:
        values: Score differences, shape (n,).
        groups: Number of the ranking that each pair is from, shape (n,).
        seed: Seed of the draws.
    """
    rng = np.random.default_rng(seed)
    names = np.unique(groups)
    right = (values > 0) + 0.5 * (values == 0)
    sums = np.array([right[groups == g].sum() for g in names])
    sizes = np.array([(groups == g).sum() for g in names])
    drawn = rng.integers(0, len(names), (BOOTSTRAPS, len(names)))  # a row of groups for each draw
    shares = sums[drawn].sum(1) / sizes[drawn].sum(1)
    low, high = float(np.quantile(shares, 0.025)), float(np.quantile(shares, 0.975))
    if len(names) < FEW_GROUPS:
        widest = wilson_interval(float(right.mean()) * len(names), len(names))
        low, high = min(low, widest[0]), max(high, widest[1])
    return low, high


def calibration(differences: NDArray[np.float64]) -> list[dict[str, float]]:
    """How often annotators preferred the response that the model prefers, by how sure the model is.

    Pairs are put into bins of equal size by σ(|difference|), the probability that Bradley and Terry's model gives them.

    Args:
        differences: Raw score of the preferred response less that of the other, shape (n,).

    Returns:
        For each bin the mean probability ``predicted``, the share ``observed``, and the number of ``pairs``.
    """
    sure = 1 / (1 + np.exp(-np.abs(differences)))
    right = (differences > 0) + 0.5 * (differences == 0)
    order = np.argsort(sure, kind="stable")
    return [
        {"predicted": float(sure[part].mean()), "observed": float(right[part].mean()), "pairs": len(part)}
        for part in np.array_split(order, min(BINS, len(order)))
    ]


def rank_correlation(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Spearman's correlation, which is Pearson's of the ranks, ties at their mean rank. NaN where one side does not vary."""

    def ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
        _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
        ends = np.cumsum(counts)  # rank of the last of those that tie
        return (ends - (counts - 1) / 2)[inverse]

    a, b = ranks(one), ranks(other)
    if a.std() == 0 or b.std() == 0:
        return math.nan
    return float(np.corrcoef(a, b)[0, 1])


def summarize(pairs: Sequence[JudgedPair], scores: Sequence[float], lengths: Sequence[int]) -> dict[str, Any]:
    """Computes the report's numbers.

    Args:
        pairs: All pairs of the held-out rankings.
        scores: Raw score of each held-out response.
        lengths: Number of words of each held-out response, in the order of `scores`.

    Raises:
        ValueError: there are no pairs.
    """
    if not pairs:
        raise ValueError("The held-out preferences have no pair with a better and a worse side.")
    differences = np.array([p.difference for p in pairs])
    groups = np.array([p.group for p in pairs])
    longer = np.array([float(p.longer) for p in pairs])
    curve = calibration(differences)
    report: dict[str, Any] = {
        "pairs": len(pairs),
        "rankings": len(np.unique(groups)),
        "accuracy": share_right(differences),
        "accuracy_interval": bootstrap_interval(differences, groups),
        "calibration": curve,
        "calibration_error": float(
            np.average([abs(b["predicted"] - b["observed"]) for b in curve], weights=[b["pairs"] for b in curve])
        ),
        "length_correlation": rank_correlation(np.array(scores, float), np.array(lengths, float)),
        "longer_is_better": share_right(longer),
    }
    if pairs[0].gold is not None:
        gold = np.array([p.gold for p in pairs], dtype=float)
        clear = gold != 0  # the gold rule has an opinion
        report["gold_accuracy"] = share_right((differences * np.sign(gold))[clear]) if clear.any() else math.nan
        report["annotator_gold_accuracy"] = share_right(gold[clear]) if clear.any() else math.nan
    return report


def worst_mistakes(pairs: Sequence[JudgedPair], count: int = 10) -> list[dict[str, Any]]:
    """The `count` pairs that the model orders wrongly by the largest differences, the largest first."""
    wrong = sorted((p for p in pairs if p.difference < 0), key=lambda p: p.difference)
    return [
        {"prompt": p.prompt, "preferred": p.better, "model_prefers": p.worse, "by": -p.difference}
        for p in wrong[:count]
    ]


def write_report(folder: Path, report: dict[str, Any], mistakes: list[dict[str, Any]]) -> None:
    """Writes ``report.json``, ``report.png`` and ``mistakes.md`` to a folder.

    Args:
        folder: The stage's output folder.
        report: Numbers of `summarize`, ``accuracy_by_margin`` and the trainer's ``log``.
        mistakes: The pairs of `worst_mistakes`.
    """
    write_json(folder / "report.json", {**report, "worst_mistakes": mistakes})
    lines = ["# Where the reward model is surest and wrong", ""]
    for m in mistakes:
        lines += [f"**{m['prompt'].strip()}**", "", f"- preferred: {m['preferred'].strip()}"]
        lines += [f"- the model prefers, by {m['by']:.2f}: {m['model_prefers'].strip()}", ""]
    write_text(folder / "mistakes.md", "\n".join(lines) + "\n")
    if can_draw():
        draw(folder / "report.png", report)


def draw(path: Path, report: dict[str, Any]) -> None:
    """Draws calibration, accuracy by margin, and held-out accuracy over training."""
    figure = new_figure(11, 3.4)
    left, middle, right = figure.subplots(1, 3)
    _draw_calibration(left, report)
    margins = report.get("accuracy_by_margin", [])
    middle.bar(range(len(margins)), [m["accuracy"] for m in margins], color="C0", alpha=0.8)
    middle.set_xticks(range(len(margins)), [f"{m['from']:.1f} to\n{m['to']:.1f}" for m in margins], fontsize=7)
    middle.set(title="accuracy by margin", xlabel="difference of the scores", ylim=(0, 1))
    log = [(e["step"], e["eval_accuracy"]) for e in report["log"] if "eval_accuracy" in e]
    if log:
        right.plot(*zip(*log, strict=True), marker=".")
    right.set(title="held-out accuracy", xlabel="step")
    for axes in (left, middle, right):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=DPI)


def _draw_calibration(axes: Any, report: dict[str, Any]) -> None:
    """Of a model that expects stars, the stars that were given; of others how often a pair was judged as they do."""
    curve = report.get("stars", {}).get("star_calibration")
    if curve is not None:
        axes.plot([1, 5], [1, 5], color="0.7", linewidth=1)
        axes.plot([b["predicted"] for b in curve], [b["given"] for b in curve], marker=".")
        axes.set(title="calibration", xlabel="predicted stars", ylabel="given stars")
        return
    curve = report["calibration"]
    axes.plot([0.5, 1], [0.5, 1], color="0.7", linewidth=1)
    axes.plot([b["predicted"] for b in curve], [b["observed"] for b in curve], marker=".")
    axes.set(title="calibration", xlabel="predicted: σ(margin)", ylabel="preferred in truth")


def accuracy_by_margin(pairs: Sequence[JudgedPair], bins: int = 5) -> list[dict[str, float]]:
    """Accuracy of pairs by how far apart the model scores them, in bins of equal size.

    Returns:
        For each bin its smallest and largest difference, ``from`` and ``to``, its ``accuracy`` and number of ``pairs``.
    """
    differences = np.array([p.difference for p in pairs])
    order = np.argsort(np.abs(differences), kind="stable")
    return [
        {
            "from": float(np.abs(differences[part]).min()),
            "to": float(np.abs(differences[part]).max()),
            "accuracy": share_right(differences[part]),
            "pairs": len(part),
        }
        for part in np.array_split(order, min(bins, len(order)))
    ]
