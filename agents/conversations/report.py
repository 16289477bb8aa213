"""What was found in a log: counts and examples of each class, and where somebody read the turns, precision and recall."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from agents.conversations.log import LABELS, NEGATIVE, NONE, POSITIVE, Turn
from agents.preferences.judge_report import proportion


def feedback_report(turns: Sequence[Turn], labels: Sequence[str | None], name: str, examples: int) -> dict[str, Any]:
    """Counts the classes.

    Args:
        turns: The users' turns of a log that stand behind an answer.
        labels: What each says of the answer before it; None where the classifier gave nothing that can be read.
        name: The classifier's name, as the report shows it.
        examples: How many examples of each class to show.

    Returns:
        ``classifier``, ``conversations``, ``turns``, ``counts`` by class, ``unreadable``, ``examples`` by class, and
        ``compared`` of `comparison` where turns have been read by somebody.
    """
    counts = Counter(label or NONE for label in labels)
    report: dict[str, Any] = {
        "classifier": name,
        "conversations": len({turn.conversation for turn in turns}),
        "turns": len(turns),
        "counts": {label: counts[label] for label in LABELS},
        "unreadable": sum(label is None for label in labels),
        "examples": {
            label: [
                {"answer": t.answer, "reply": t.reply}
                for t, said in zip(turns, labels, strict=True)
                if (said or NONE) == label
            ][:examples]
            for label in LABELS
        },
    }
    read = [(t.truth, said or NONE) for t, said in zip(turns, labels, strict=True) if t.truth is not None]
    if read:
        report["compared"] = comparison(read)
    return report


def comparison(pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Compares classes with those of somebody who read the turns.

    Args:
        pairs: (true class, class that was found) of each turn.

    Returns:
        ``turns``; ``right``, the share of equal classes; by class ``precision``, of those found how many are true, and
        ``recall``, of those that are true how many were found, each a count, a share and its 95 % interval (Wilson); and
        ``confusion``, counts by true and then by found class.
    """
    counts = Counter(pairs)
    by_class = {}
    for label in LABELS:
        hit = counts[label, label]
        by_class[label] = {
            "precision": proportion(hit, sum(counts[true, label] for true in LABELS)),
            "recall": proportion(hit, sum(counts[label, found] for found in LABELS)),
        }
    return {
        "turns": len(pairs),
        "right": proportion(sum(counts[label, label] for label in LABELS), len(pairs)),
        "by_class": by_class,
        "confusion": {true: {found: counts[true, found] for found in LABELS} for true in LABELS},
    }


def described(report: dict[str, Any]) -> list[str]:
    """The report in lines for a terminal."""
    counts = report["counts"]
    lines = [
        f"{report['classifier']}: of {report['turns']:,} turns behind an answer, in {report['conversations']:,} conversations, "
        f"{counts[POSITIVE]:,} are content with it, {counts[NEGATIVE]:,} are not, {counts[NONE]:,} say neither."
    ]
    if report["unreadable"]:
        lines.append(f"{report['unreadable']:,} replies of the classifier could not be read; they count as neither.")
    if "compared" in report:
        for label in (POSITIVE, NEGATIVE):
            both = report["compared"]["by_class"][label]
            lines.append(f"{label}: precision {_share(both['precision'])}, recall {_share(both['recall'])}.")
    return lines


def _share(values: dict[str, Any]) -> str:
    if values["share"] is None:
        return "unknown (0 of 0)"
    low, high = values["interval"]
    return f"{values['share']:.1%} ({low:.1%} to {high:.1%})"


def as_markdown(report: dict[str, Any]) -> str:
    """The report as a page: lines, and a table of examples for each class."""
    lines = ["# What users say of the answers", "", *described(report), ""]
    for label in LABELS:
        lines += [f"## {label}: {report['counts'][label]:,}", ""]
        for example in report["examples"][label]:
            lines += [f"- {_line(example['answer'])}", f"  - {_line(example['reply'])}"]
        lines.append("")
    return "\n".join(lines)


def _line(text: str) -> str:
    """A text on one line, none of whose characters are markup."""
    return " ".join(text.split()).replace("\\", "\\\\").translate({ord(c): f"\\{c}" for c in "`*_[]<>|"})
