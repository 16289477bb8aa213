"""How far a judge can be trusted: ties, position bias, replies that say nothing, agreement with people's labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agents.checksums import read_object
from agents.evaluation.statistics import Estimate, wilson_interval
from agents.files import write_json
from agents.preferences.records import Ranking, prompt_key
from llm_env.reward.judges.reading import Reply, grade_of, verdict_of

FILE = "judges.json"


@dataclass(frozen=True)
class Pair:
    """The two replies about two responses.

    Attributes:
        one: The reply where the first response stands at A.
        other: The reply where it stands at B.
    """

    one: Reply
    other: Reply

    @property
    def verdicts(self) -> tuple[str | None, str | None]:
        """``A``, ``B``, ``tie`` or None, in each order."""
        return verdict_of(self.one), verdict_of(self.other)

    @property
    def share_of_first(self) -> float:
        """1 where the first response is better in both orders, 0 where the second is, one half else."""
        return {("A", "B"): 1.0, ("B", "A"): 0.0}.get(self.verdicts, 0.5)  # type: ignore[arg-type]


def pairs_report(pairs: Sequence[Pair]) -> dict[str, Any]:
    """Counts what a judge said of pairs.

    Returns:
        ``pairs``; ``decided``: better in both orders; ``turned``: the verdict is for the same place in both orders;
        ``turned_to_first``: of these, for the place A (one half would be no bias); ``other_ties``: the judge said tie, or
        nothing that can be read, in an order; ``first_place``: how many of all letters are A; ``unreadable`` replies;
        ``probability_of_answers``: how likely the model was to reply with a letter at all, where that is known.
    """
    verdicts = [pair.verdicts for pair in pairs]
    to_first, to_second = verdicts.count(("A", "A")), verdicts.count(("B", "B"))
    turned = to_first + to_second
    decided = verdicts.count(("A", "B")) + verdicts.count(("B", "A"))
    letters = [v for both in verdicts for v in both if v in ("A", "B")]
    replies = [reply for pair in pairs for reply in (pair.one, pair.other)]
    return {
        "pairs": len(pairs),
        "decided": proportion(decided, len(pairs)),
        "turned": proportion(turned, len(pairs)),
        "turned_to_first": proportion(to_first, turned),
        "other_ties": len(pairs) - decided - turned,
        "first_place": proportion(letters.count("A"), len(letters), independent=False),
        "unreadable": sum(v is None for both in verdicts for v in both),
        "probability_of_answers": _mean_mass(replies),
    }


def grades_report(grades: Sequence[Sequence[Reply]]) -> dict[str, Any]:
    """Describes a judge's grades.

    Args:
        grades: For each prompt, the reply to each of its responses.

    Returns:
        ``responses``; ``mean``, ``interval`` and ``std`` of the grades; ``tied_pairs``: two responses to a prompt with the same
        grade; ``from_probabilities``: grades that are expected values; ``unreadable``; ``probability_of_answers``.
    """
    replies = [reply for of_prompt in grades for reply in of_prompt]
    values = [grade for reply in replies if (grade := grade_of(reply)) is not None]
    estimate = Estimate.of(values) if values else None
    by_prompt = [[grade_of(reply) for reply in of_prompt] for of_prompt in grades]
    pairs = [(g, h) for of_prompt in by_prompt for i, g in enumerate(of_prompt) for h in of_prompt[:i]]
    return {
        "responses": len(replies),
        "mean": estimate and estimate.mean,
        "interval": estimate and [estimate.mean - estimate.half_width, estimate.mean + estimate.half_width],
        "std": estimate and estimate.std,
        "tied_pairs": proportion(sum(g == h for g, h in pairs), len(pairs), independent=False),
        "from_probabilities": sum(reply.shares is not None for reply in replies),
        "unreadable": len(replies) - len(values),
        "probability_of_answers": _mean_mass(replies),
    }


def labels_report(labels: Sequence[Ranking], rankings: Sequence[Ranking]) -> dict[str, Any]:
    """Compares a judge's rankings with people's.

    Args:
        labels: What people ranked. Two responses that tie there are left out.
        rankings: The judge's rankings, of the same texts.

    Returns:
        ``pairs`` that people decided and the judge ranked; how many ``agreed``, ``disagreed`` and were ``ties`` of the judge;
        ``agreement`` among those that the judge decided; ``agreement_ties_half``: among all, a tie counting one half.
    """
    ranks = {}
    for ranking in rankings:
        for name, rank in ranking.ranks().items():
            ranks[
                prompt_key(ranking.candidates.prompt), ranking.candidates.id, ranking.candidates.response(name).text
            ] = rank
    counts = {-1: 0, 0: 0, 1: 0}
    for label in labels:
        about = prompt_key(label.candidates.prompt), label.candidates.id
        for better, worse, _ in label.pairs():
            one, other = ranks.get((*about, better.text)), ranks.get((*about, worse.text))
            if one is not None and other is not None:
                counts[(one > other) - (one < other)] += 1
    agreed, ties, disagreed = counts[-1], counts[0], counts[1]
    pairs = agreed + ties + disagreed
    return {
        "pairs": pairs,
        "agreed": agreed,
        "disagreed": disagreed,
        "ties": ties,
        "agreement": proportion(agreed, agreed + disagreed),
        "agreement_ties_half": proportion(agreed + ties / 2, pairs),
    }


def proportion(count: float, of: int, independent: bool = True) -> dict[str, Any]:
    """A share with its count, and where the cases are independent its 95 % interval (Wilson); None for both where `of` is 0."""
    values: dict[str, Any] = {"count": count, "of": of, "share": count / of if of else None}
    if independent:
        values["interval"] = list(wilson_interval(count, of)) if of else None
    return values


def keep_report(folder: Path, report: dict[str, Any]) -> None:
    """Writes a judge's report to ``judges.json``, beside those of others."""
    path = folder / FILE
    try:
        reports = read_object(path) if path.is_file() else {}
    except ValueError:  # a result, which is made anew
        reports = {}
    write_json(path, {**reports, report["judge"]: report})


def described(report: dict[str, Any]) -> list[str]:
    """A report in lines for a terminal."""
    lines = []
    if "turned" in report:
        lines.append(
            f"{report['judge']}: {report['pairs']:,} pairs in both orders; {_share(report['decided'])} decided, "
            f"{_share(report['turned'])} turned with the order and tie, of these {_share(report['turned_to_first'])} for the "
            f"first place; {report['other_ties']} other ties."
        )
    elif "from_probabilities" in report:
        mean = (
            "no grade"
            if report["mean"] is None
            else f"mean grade {report['mean']:.2f} ({_range(report['interval'], '.2f')})"
        )
        lines.append(
            f"{report['judge']}: {report['responses']:,} responses graded, {mean}; {_share(report['tied_pairs'])} pairs tie; "
            f"{report['from_probabilities']:,} from probabilities."
        )
    if report.get("unreadable"):
        lines.append(f"{report['unreadable']} replies could not be read.")
    if "labels" in report:
        labels = report["labels"]
        lines.append(
            f"With people's labels on {labels['pairs']:,} pairs: {_share(labels['agreement'])} of the decided agree, "
            f"{labels['ties']} ties; ties counted one half: {_share(labels['agreement_ties_half'])}."
        )
    return lines


def _share(values: dict[str, Any]) -> str:
    """A proportion as ``3 of 4 (75%; 95% interval 30% to 95%)``."""
    if values["share"] is None:
        return "0 of 0"
    text = f"{values['count']:g} of {values['of']:,} ({values['share']:.0%}"
    return text + (f"; {_range(values['interval'], '.0%')})" if values.get("interval") else ")")


def _range(interval: Sequence[float], form: str) -> str:
    return f"95% interval {interval[0]:{form}} to {interval[1]:{form}}"


def _mean_mass(replies: Sequence[Reply]) -> float | None:
    masses = [reply.mass for reply in replies if reply.mass is not None]
    return float(np.mean(masses)) if masses else None
