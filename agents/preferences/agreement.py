"""How far annotators agree: Krippendorff's α over all annotators, Cohen's κ of each two."""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from typing import Any

from agents.preferences.records import Ranking


def krippendorff_alpha(units: Sequence[Sequence[Hashable]]) -> float:
    """Krippendorff's α for nominal values: 1 where all agree, 0 at chance.

    α = 1 - D_o / D_e, Krippendorff 2004, "Content Analysis", chapter 11: the observed disagreement within units over the one
    of values paired at random.

    Args:
        units: For each unit, the values that annotators gave it; units with one value do not count.

    Returns:
        α, at most 1; NaN where no unit has two values; 1 where only one value occurs.
    """
    # how often each two values meet in a unit, each unit weighing as much as it has values
    coincidences: Counter[tuple[Hashable, Hashable]] = Counter()
    for values in units:
        if len(values) < 2:
            continue
        for i, j in itertools.permutations(range(len(values)), 2):
            coincidences[values[i], values[j]] += 1 / (len(values) - 1)  # type: ignore[assignment]
    totals: Counter[Hashable] = Counter()
    for (value, _), weight in coincidences.items():
        totals[value] += weight
    n = sum(totals.values())
    if not n:
        return math.nan
    observed = sum(weight for (a, b), weight in coincidences.items() if a != b)
    expected = sum(totals[a] * totals[b] for a, b in itertools.permutations(totals, 2)) / (n - 1)
    return 1.0 if not expected else 1 - observed / expected


def cohen_kappa(one: Sequence[Hashable], other: Sequence[Hashable]) -> float:
    """Cohen's κ of two annotators: 1 where they agree, 0 at chance (Cohen 1960, https://doi.org/10.1177/001316446002000104).

    Args:
        one: The values that one annotator gave.
        other: The values that the other gave to the same units, in the same order.

    Returns:
        NaN without units; 1 where both only ever gave the same single value.
    """
    n = len(one)
    if not n:
        return math.nan
    agreed = sum(a == b for a, b in zip(one, other, strict=True)) / n
    first, second = Counter(one), Counter(other)
    chance = sum(first[value] * second[value] for value in first) / n**2
    return 1.0 if chance == 1 else (agreed - chance) / (1 - chance)


def judgments(rankings: Sequence[Ranking]) -> dict[tuple[Any, ...], dict[str, str]]:
    """Judgments of each pair of responses by each annotator: ``first``, ``second`` or ``tie``.

    Returns:
        For each (prompt id, aspect, response id, response id) the judgments by annotator. Where an annotator answered twice,
        the later answer counts.
    """
    units: dict[tuple[Any, ...], dict[str, str]] = defaultdict(dict)
    for ranking in rankings:
        ranks = ranking.ranks()
        for a, b in itertools.combinations(sorted(ranks), 2):
            judgment = "tie" if ranks[a] == ranks[b] else "first" if ranks[a] < ranks[b] else "second"
            units[ranking.candidates.id, ranking.aspect, a, b][ranking.annotator] = judgment
    return units


def agreement(rankings: Sequence[Ranking]) -> dict[str, Any]:
    """Computes Krippendorff's α over all pairs of responses, and κ and the share of equal judgments of each two annotators.

    Returns:
        ``alpha`` (NaN where no pair was judged twice), ``pairs_judged_twice``, ``annotators``, and ``between``: a list of
        ``annotators``, ``kappa``, ``agreed``, ``pairs``.
    """
    units = list(judgments(rankings).values())
    names = sorted({name for by_annotator in units for name in by_annotator})
    between = []
    for one, other in itertools.combinations(names, 2):
        both = [(unit[one], unit[other]) for unit in units if one in unit and other in unit]
        if both:
            left, right = zip(*both, strict=True)
            between.append(
                {
                    "annotators": [one, other],
                    "kappa": cohen_kappa(left, right),
                    "agreed": sum(a == b for a, b in both) / len(both),
                    "pairs": len(both),
                }
            )
    return {
        "alpha": krippendorff_alpha([list(unit.values()) for unit in units]),
        "pairs_judged_twice": sum(len(unit) > 1 for unit in units),
        "annotators": names,
        "between": between,
    }
