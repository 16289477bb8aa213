"""Selects what to train on, or to ask about, next: best responses, clear pairs, prompts that were lost, disputed prompts."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from agents.preferences.records import Ranking, Response, prompt_key
from llm_env.text.texts import TextRecord

PAIRS = ("all", "best_worst")
"""Which pairs of a ranking may be trained on."""


def check_pairs(which: str) -> None:
    """Refuses a name that is none of `PAIRS`.

    Raises:
        ValueError: it is none of them.
    """
    if which not in PAIRS:
        raise ValueError(f"pairs={which!r} is not known; use one of {', '.join(PAIRS)}.")


def pairs_of(rankings: Sequence[Ranking], which: str = "all") -> list[Ranking]:
    """Makes each ranking's pairs, as rankings of two responses; pairs of equal texts are left out.

    A pair's margin is the difference of the scores or stars where both responses have some, else the ranking's margin, else the
    number of tiers between the two.

    Args:
        rankings: Rankings of two or more responses.
        which: ``all`` pairs of a ranking, or its ``best_worst``, the pair with the largest margin.

    Raises:
        ValueError: `which` is neither.
    """
    check_pairs(which)
    selected = []
    for ranking in rankings:
        pairs = ranking.pairs()
        if which == "best_worst" and pairs:
            pairs = [max(pairs, key=lambda pair: (_margin(ranking, *pair), pair[2]))]
        for better, worse, apart in pairs:
            if better.text.strip() != worse.text.strip():
                selected.append(_pair(ranking, better, worse, _margin(ranking, better, worse, apart)))
    return selected


def given_margin(ranking: Ranking, better: str, worse: str) -> float | None:
    """How much better a response is than another by their scores or stars, else the ranking's margin; None: nothing says it.

    Args:
        ranking: A comparison that has both, with its scores, stars or margin.
        better: Id of the response that was preferred.
        worse: Id of the one that was not; a margin below 0, where scores contradict the order, counts as 0.
    """
    for known in (ranking.scores, ranking.stars):
        if known is not None and better in known and worse in known:
            return float(max(0, known[better] - known[worse]))
    return ranking.margin


def _margin(ranking: Ranking, better: Response, worse: Response, apart: int) -> float:
    """How much better the one is than the other; `apart` is the number of tiers from one to the other."""
    given = given_margin(ranking, better.id, worse.id)
    return float(apart - 1) if given is None else given


def _pair(ranking: Ranking, better: Response, worse: Response, margin: float) -> Ranking:
    """A ranking of two of a ranking's responses."""
    whole = ranking.candidates
    two = type(whole)(whole.id, whole.prompt, (better, worse), whole.columns)
    names = [better.id, worse.id]
    scores = None if ranking.scores is None else {n: ranking.scores[n] for n in names if n in ranking.scores}
    stars = None if ranking.stars is None else {n: ranking.stars[n] for n in names if n in ranking.stars}
    tiers = ((better.id,), (worse.id,))
    return replace(ranking, candidates=two, tiers=tiers, all_bad=False, margin=margin, scores=scores, stars=stars)


def pair_records(rankings: Sequence[Ranking]) -> list[dict[str, Any]]:
    """Makes records of all pairs in TRL's format, with their margins, and a note of each side that was cut off."""
    records = []
    for pair in pairs_of(rankings):
        better, worse = pair.candidates.responses
        records.append(
            {
                "prompt": pair.candidates.prompt,
                **pair.candidates.columns_json(),
                "chosen": better.text,
                "rejected": worse.text,
                **({} if better.finished else {"chosen_finished": False}),
                **({} if worse.finished else {"rejected_finished": False}),
                "margin": pair.margin,
                "annotator": pair.annotator,
                "aspect": pair.aspect,
            }
        )
    return records


def clearest(pairs: Sequence[Ranking], share: float) -> list[Ranking]:
    """Selects the pairs with the largest margins, and keeps their order; of any pairs at least one is selected.

    Args:
        pairs: Pairs of `pairs_of`.
        share: Share of the pairs to select, above 0 and at most 1.

    Raises:
        ValueError: the share is out of range.
    """
    if not 0 < share <= 1:
        raise ValueError(f"margin_share={share} must be above 0 and at most 1.")
    count = math.ceil(len(pairs) * share)
    order = sorted(range(len(pairs)), key=lambda i: -(pairs[i].margin or 0.0))
    kept = set(order[:count])
    return [pair for i, pair in enumerate(pairs) if i in kept]


def lost(rankings: Sequence[Ranking], source: str) -> list[Ranking]:
    """Selects rankings in which another source stands above all responses of `source`, which has to learn there.

    The arena idea of Luo et al. 2024, "WizardArena" (https://arxiv.org/abs/2407.10627): train on the prompts that the model
    loses against stronger ones, with the winner's response to prefer.

    Args:
        rankings: Rankings of responses from two or more sources.
        source: The model whose losses are selected: a response's `source`, or its part before the temperature.
    """
    selected = []
    for ranking in rankings:
        best = [ranking.candidates.response(name) for tier in ranking.tiers[:1] for name in tier]
        ranked = [ranking.candidates.response(name) for tier in ranking.tiers for name in tier]
        took_part = any(_is(r, source) for r in ranked)
        if took_part and best and not any(_is(r, source) for r in best):
            selected.append(ranking)
    return selected


def _is(response: Response, source: str) -> bool:
    """Whether a response is from a source, at any temperature."""
    return response.source == source or response.source.startswith(f"{source} at ")


def agreement_by_prompt(rankings: Sequence[Ranking]) -> dict[str, float]:
    """Computes the share of equal verdicts for each prompt that two or more annotators ranked.

    A verdict is that one response of a pair is better, worse, or ties; verdicts on the same two texts are compared.

    Returns:
        The share for each such prompt, by its `prompt_key`.
    """
    verdicts: dict[str, dict[tuple[str, str], list[int]]] = defaultdict(lambda: defaultdict(list))
    for ranking in rankings:
        ranks = ranking.ranks()
        texts = {name: ranking.candidates.response(name).text for name in ranks}
        for one, other in itertools.combinations(sorted(ranks, key=lambda name: texts[name]), 2):
            sign = (ranks[one] > ranks[other]) - (ranks[one] < ranks[other])
            verdicts[prompt_key(ranking.candidates.prompt)][texts[one], texts[other]].append(sign)
    shares = {}
    for key, pairs in verdicts.items():
        both = [a == b for signs in pairs.values() for a, b in itertools.combinations(signs, 2)]
        if both:
            shares[key] = sum(both) / len(both)
    return shares


def disputed_first(rankings: Sequence[Ranking]) -> list[Ranking]:
    """Sorts rankings by their prompt's agreement, lowest first; prompts that only one annotator ranked come last."""
    agreement = agreement_by_prompt(rankings)
    last = 2.0  # above every share
    return sorted(rankings, key=lambda r: agreement.get(prompt_key(r.candidates.prompt), last))


def best_texts(rankings: Sequence[Ranking]) -> list[TextRecord]:
    """Selects each ranking's best response, to fine-tune on: rejection sampling, or best of n.

    Dong et al. 2023, "RAFT" (https://arxiv.org/abs/2304.06767); Touvron et al. 2023, "Llama 2", section 3.2.3. A ranking in
    which all are bad, or all tie, gives none.
    """
    texts = []
    for ranking in rankings:
        if len(ranking.tiers) > 1 and not ranking.all_bad:
            best = ranking.candidates.response(ranking.tiers[0][0])
            texts.append(TextRecord(ranking.candidates.prompt, best.text, best.finished))
    return texts
