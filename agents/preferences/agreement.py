"""How far annotators agree: Krippendorff's α over all of them, Cohen's κ of each two."""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from agents.preferences.records import Ranking


def krippendorff_alpha(units: Sequence[Sequence[Hashable]]) -> float:
    """Krippendorff's α for nominal values: 1 where all agree, 0 at chance.

    α = 1 - D_o / D_e, Krippendorff 2004, "Content Analysis", chapter 11: the observed disagreement within units over the one
    of values paired at random.

    Args:
        units: The values that annotators gave to each unit; units with one value say nothing.

    Returns:
        NaN where no unit has two values; 1 where only one value occurs.
    """
    coincidences: Counter[tuple[Hashable, Hashable]] = Counter()
    for values in units:
        if len(values) < 2:
            continue
        for one, other in itertools.permutations(range(len(values)), 2):
            coincidences[values[one], values[other]] += 1 / (len(values) - 1)  # type: ignore[assignment]
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
    """Cohen's κ of two annotators who valued the same units (Cohen 1960, https://doi.org/10.1177/001316446002000104).

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


def judgements(rankings: Sequence[Ranking]) -> dict[tuple[Any, ...], dict[str, str]]:
    """Who said what of each pair of responses: ``first``, ``second`` or ``tie``.

    Returns:
        For each (prompt id, aspect, response, response) the annotators' judgements; of two answers of one annotator the
        later counts.
    """
    units: dict[tuple[Any, ...], dict[str, str]] = defaultdict(dict)
    for ranking in rankings:
        ranks = ranking.ranks()
        for a, b in itertools.combinations(sorted(ranks), 2):
            said = "tie" if ranks[a] == ranks[b] else "first" if ranks[a] < ranks[b] else "second"
            units[ranking.candidates.id, ranking.aspect, a, b][ranking.annotator] = said
    return units


def agreement(rankings: Sequence[Ranking]) -> dict[str, Any]:
    """Krippendorff's α over all pairs of responses, and each two annotators' κ and share of equal judgements.

    Returns:
        ``alpha`` (NaN where no pair was judged twice), ``pairs_judged_twice``, ``annotators``, and ``between``: a list of
        ``annotators``, ``kappa``, ``agreed``, ``pairs``.
    """
    units = judgements(rankings)
    names = sorted({name for said in units.values() for name in said})
    between = []
    for one, other in itertools.combinations(names, 2):
        both: list[Mapping[str, str]] = [said for said in units.values() if one in said and other in said]
        if both:
            left, right = [said[one] for said in both], [said[other] for said in both]
            between.append(
                {
                    "annotators": [one, other],
                    "kappa": cohen_kappa(left, right),
                    "agreed": sum(a == b for a, b in zip(left, right, strict=True)) / len(both),
                    "pairs": len(both),
                }
            )
    return {
        "alpha": krippendorff_alpha([list(said.values()) for said in units.values()]),
        "pairs_judged_twice": sum(len(said) > 1 for said in units.values()),
        "annotators": names,
        "between": between,
    }
