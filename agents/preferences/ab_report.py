"""What an A/B test found: win rate, decision, by length and by topic, the clearest wins and losses; as JSON and as text."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from agents.evaluation.sequential import first_decision, interval_at_any_time, log_e_value
from agents.evaluation.statistics import wilson_interval
from agents.preferences.ab import A, B, outcome, outcomes
from agents.preferences.page import prompt_text
from agents.preferences.records import Ranking

ABOUT_AS_LONG = 1.1
"""Up to this ratio of their words two responses are about as long."""
MOST_VALUES = 20
"""Values of a column that are told apart, the most frequent ones."""
OTHERS = "(others)"


def ab_report(
    rankings: Sequence[Ranking],
    error: float = 0.05,
    equal_within: float = 0.0,
    by: Sequence[str] = (),
    topics: Sequence[str] = (),
    examples: int = 5,
) -> dict[str, Any]:
    """Describes the comparisons.

    Args:
        rankings: One comparison for each prompt, in the order in which they were made.
        error: α of the test and of its intervals.
        equal_within: See `first_decision`.
        by: Columns of the prompts' records whose values are told apart.
        topics: Regular expressions; the prompts that have one of them in their text are told apart.
        examples: How many of the clearest wins and losses are shown.

    Returns:
        ``comparisons``, ``wins``, ``losses``, ``ties`` of A; ``win_rate``, ties counted one half, with an ``interval`` that
        holds whenever one stops; ``decision`` (``a``, ``b``, ``equal`` or None) and ``decided_after`` how many comparisons;
        ``decided``: the share of A's wins without ties, with its interval, e-value and p-value; ``words``; ``groups``: the same
        counts by length and topic, with intervals (Wilson) for that group alone; ``clearest_wins``, ``clearest_losses``.
    """
    results = outcomes(rankings)
    decision, after = first_decision(results, error, equal_within)
    counts = _counts(results)
    wins, losses, ties = counts["wins"], counts["losses"], counts["ties"]
    log_e = log_e_value(wins, losses)
    return {
        **counts,
        "interval": interval_at_any_time(wins + ties / 2, losses + ties / 2, error),
        "decision": decision,
        "decided_after": after if decision else None,
        "error": error,
        "decided": {
            "share": wins / (wins + losses) if wins + losses else None,
            "interval": interval_at_any_time(wins, losses, error),
            "e_value": math.exp(min(log_e, 700.0)),
            "p_value": _p_value(results),
        },
        "words": {"a": _mean_words(rankings, A), "b": _mean_words(rankings, B)},
        "groups": {
            "which response is longer": _groups(rankings, _longer),
            "length of the prompt": _groups(rankings, _prompt_half(rankings)),
            **({"topic": _groups(rankings, _topic(topics))} if topics else {}),
            **{name: _groups(rankings, _column(rankings, name)) for name in by},
        },
        "clearest_wins": _clearest(rankings, 1.0, examples),
        "clearest_losses": _clearest(rankings, 0.0, examples),
    }


def check_groups(by: Sequence[str], topics: Sequence[str], columns: Sequence[str]) -> None:
    """Refuses what no group can be made of.

    Args:
        by: Names of columns.
        topics: Regular expressions.
        columns: The columns that the prompts have.

    Raises:
        ValueError: a column that no prompt has, or what is no regular expression.
    """
    for name in by:
        if name not in columns:
            raise ValueError(f"by={name!r}: no prompt has this column. There are: {', '.join(columns) or 'none'}.")
    for topic in topics:
        try:
            re.compile(topic)
        except re.error as error:
            raise ValueError(f"topics={topic!r} is not a regular expression: {error}.") from error


def _counts(results: Sequence[float]) -> dict[str, Any]:
    wins, losses = results.count(1.0), results.count(0.0)
    ties = len(results) - wins - losses
    rate = (wins + ties / 2) / len(results) if results else None
    return {"comparisons": len(results), "wins": wins, "losses": losses, "ties": ties, "win_rate": rate}


def _p_value(results: Sequence[float]) -> float:
    """1 over the largest e-value at any time: a p-value that holds whenever one stops."""
    wins = losses = 0
    largest = 0.0
    for result in results:
        wins, losses = wins + (result > 0.5), losses + (result < 0.5)
        largest = max(largest, log_e_value(wins, losses))
    return math.exp(-largest)


def _words(ranking: Ranking, which: str) -> int:
    return len(ranking.candidates.response(which).text.split())


def _mean_words(rankings: Sequence[Ranking], which: str) -> float | None:
    return sum(_words(r, which) for r in rankings) / len(rankings) if rankings else None


def _groups(rankings: Sequence[Ranking], key: Callable[[Ranking], str]) -> dict[str, dict[str, Any]]:
    """Counts for each value of a key, with the win rate's interval."""
    members: dict[str, list[float]] = {}
    for ranking in rankings:
        members.setdefault(key(ranking), []).append(outcome(ranking))
    groups = {}
    for name in sorted(members):
        counts = _counts(members[name])
        points = counts["wins"] + counts["ties"] / 2
        groups[name] = {**counts, "interval": wilson_interval(points, counts["comparisons"])}
    return groups


def _longer(ranking: Ranking) -> str:
    a, b = _words(ranking, A), _words(ranking, B)
    if max(a, b) <= ABOUT_AS_LONG * min(a, b):
        return "about as long"
    return "A's" if a > b else "B's"


def _prompt_half(rankings: Sequence[Ranking]) -> Callable[[Ranking], str]:
    lengths = sorted(len(prompt_text(r.candidates).split()) for r in rankings)
    median = lengths[len(lengths) // 2] if lengths else 0
    return lambda r: (
        f"below {median} words" if len(prompt_text(r.candidates).split()) < median else f"{median} words or more"
    )


def _topic(topics: Sequence[str]) -> Callable[[Ranking], str]:
    return lambda r: next((t for t in topics if re.search(t, prompt_text(r.candidates), re.IGNORECASE)), OTHERS)


def _column(rankings: Sequence[Ranking], name: str) -> Callable[[Ranking], str]:
    def value(ranking: Ranking) -> str:
        return str(ranking.candidates.columns.get(name, "(none)"))

    frequent = {v for v, _ in Counter(map(value, rankings)).most_common(MOST_VALUES)}
    return lambda r: value(r) if value(r) in frequent else OTHERS


def _clearest(rankings: Sequence[Ranking], result: float, count: int) -> list[dict[str, Any]]:
    """Comparisons that ended so, those with the largest difference of scores first, where the judge gives scores."""
    chosen = [r for r in rankings if outcome(r) == result]
    margins = {id(r): abs(r.scores[A] - r.scores[B]) if r.scores else 0.0 for r in chosen}
    chosen.sort(key=lambda r: -margins[id(r)])
    return [
        {
            "prompt": r.candidates.prompt,
            "a": r.candidates.response(A).text,
            "b": r.candidates.response(B).text,
            **({"scores": {"a": r.scores[A], "b": r.scores[B]}} if r.scores else {}),
        }
        for r in chosen[:count]
    ]


def verdict(report: dict[str, Any]) -> str:
    """The decision in a sentence."""
    if report["decision"] is None:
        return f"Undecided after {report['comparisons']} comparisons."
    text = {"a": "A is better", "b": "B is better", "equal": "A and B are equal"}[report["decision"]]
    return f"{text}: decided after {report['decided_after']} comparisons (error rate at most {report['error']:g})."


def markdown(report: dict[str, Any]) -> str:
    """The report as Markdown; prompts and responses stand in it as code, so that they are shown as they are."""
    low, high = report["interval"]
    lines = [
        f"# A/B test\n\nA: `{report['a']}`  \nB: `{report['b']}`  \njudge: `{report['judge']}`\n\n**{verdict(report)}**\n",
        "| | |\n|---|---|",
        f"| comparisons | {report['comparisons']}: A won {report['wins']}, lost {report['losses']}, {report['ties']} ties |",
        f"| win rate of A, ties one half | {_percent(report['win_rate'])} ({low:.1%} to {high:.1%}, whenever one stops) |",
        f"| A's share of the decided | {_percent(report['decided']['share'])} ({report['decided']['interval'][0]:.1%} to "
        f"{report['decided']['interval'][1]:.1%}) |",
        f"| e-value, p-value | {report['decided']['e_value']:.3g}, {report['decided']['p_value']:.3g} |",
        f"| words of A, of B | {_number(report['words']['a'])}, {_number(report['words']['b'])} |\n",
    ]
    for title, groups in report["groups"].items():
        lines += [
            f"\n| {_cell(title)} | comparisons | won | lost | ties | win rate of A (95 %) |",
            "|---|---|---|---|---|---|",
        ]
        for name, g in groups.items():
            lines.append(
                f"| {_cell(name)} | {g['comparisons']} | {g['wins']} | {g['losses']} | {g['ties']} | "
                f"{_percent(g['win_rate'])} ({g['interval'][0]:.0%} to {g['interval'][1]:.0%}) |"
            )
    for title, key in (("A's clearest wins", "clearest_wins"), ("A's clearest losses", "clearest_losses")):
        lines.append(f"\n## {title}\n")
        lines += [_example(e) for e in report[key]] or ["None."]
    return "\n".join(lines) + "\n"


def _example(example: dict[str, Any]) -> str:
    prompt = example["prompt"]
    text = prompt if isinstance(prompt, str) else "\n".join(f"{m['role']}: {m['content']}" for m in prompt)
    scores = example.get("scores")
    a, b = (f" ({scores['a']:.2f})", f" ({scores['b']:.2f})") if scores else ("", "")
    parts = (("prompt", text), (f"A{a}", example["a"]), (f"B{b}", example["b"]))
    return "\n".join(f"{name}:\n\n{_code(text)}\n" for name, text in parts)


def _code(text: str) -> str:
    """A text as a block of code, indented, in which Markdown reads nothing."""
    return "\n".join(f"    {line}" for line in text.strip().splitlines() or [""])


def _cell(text: str) -> str:
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", " ".join(text.split()))


def _percent(value: float | None) -> str:
    return "none" if value is None else f"{value:.1%}"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.1f}"
