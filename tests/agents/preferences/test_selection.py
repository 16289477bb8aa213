"""What is chosen to train on, or to ask about, next."""

from __future__ import annotations

import pytest

from agents.preferences.records import Candidates, Ranking, Response
from agents.preferences.selection import (
    agreement_by_prompt,
    best_texts,
    clearest,
    disputed_first,
    lost,
    pair_records,
    pairs_of,
)


def ranking(
    tiers: str, prompt: str = "p", scores: dict[str, float] | None = None, sources: str = "", who: str = "ann"
) -> Ranking:
    """``a>bc`` ranks a above b and c, which tie; `sources` names each response's source by a letter."""
    ordered = tuple(tuple(tier) for tier in tiers.split(">"))
    names = sorted(name for tier in ordered for name in tier)
    made_by = dict(zip(names, sources, strict=True)) if sources else {}
    responses = tuple(Response(n, f" text {n}", n != "b", f"{made_by.get(n, 'x')} at 1") for n in names)
    return Ranking(Candidates(prompt, prompt, responses), ordered, who, scores=scores)


def shown(pairs: list[Ranking]) -> list[tuple[str, str, float | None]]:
    return [(p.tiers[0][0], p.tiers[1][0], p.margin) for p in pairs]


def test_pairs_have_margins_of_scores_or_of_places() -> None:
    assert shown(pairs_of([ranking("a>bc>d")])) == [
        ("a", "b", 0.0), ("a", "c", 0.0), ("a", "d", 1.0), ("b", "d", 0.0), ("c", "d", 0.0),
    ]  # fmt: skip
    scored = ranking("a>b>c", scores={"a": 2.0, "b": 1.5, "c": -1.0})
    assert shown(pairs_of([scored])) == [("a", "b", 0.5), ("a", "c", 3.0), ("b", "c", 2.5)]
    assert shown(pairs_of([scored], "best_worst")) == [("a", "c", 3.0)]
    assert shown(pairs_of([ranking("ab")], "best_worst")) == []  # a tie makes no pair
    assert pairs_of([scored])[0].scores == {"a": 2.0, "b": 1.5}
    assert [p["margin"] for p in pair_records([scored])] == [0.5, 3.0, 2.5]
    partly = ranking("a>b>c", scores={"a": 2.0, "b": 1.5})  # c was ranked, not scored
    assert shown(pairs_of([partly])) == [("a", "b", 0.5), ("a", "c", 1.0), ("b", "c", 0.0)]
    with pytest.raises(ValueError, match="pairs='some' is not known"):
        pairs_of([], "some")


def test_the_clearest_pairs_stay_in_their_order() -> None:
    pairs = pairs_of([ranking("a>b>c>d", scores={"a": 5.0, "b": 4.5, "c": 1.0, "d": 0.0})])
    assert [p.margin for p in pairs] == [0.5, 4.0, 5.0, 3.5, 4.5, 1.0]
    assert [p.margin for p in clearest(pairs, 0.5)] == [4.0, 5.0, 4.5]
    assert [p.margin for p in clearest(pairs, 0.01)] == [5.0]
    with pytest.raises(ValueError, match="margin_share=0 must be above 0"):
        clearest(pairs, 0)


def test_a_prompt_is_lost_where_only_the_opponent_is_on_top() -> None:
    won, beaten, tied, alone = "a>b>c", "b>a>c", "ab>c", "a>c"
    games = [
        ranking(won, sources="mmo"), ranking(beaten, sources="mom"), ranking(tied, sources="mom"),
        ranking(alone, sources="mm"), ranking("c>a", sources="mo"),
    ]  # fmt: skip
    assert lost(games, "m") == [games[1], games[4]]
    assert lost(games, "o") == [games[0]]
    assert lost(games, "nobody") == []


def test_agreement_counts_verdicts_on_the_same_texts() -> None:
    rankings = [
        ranking("a>b>c", "one", who="ann"), ranking("a>c>b", "one", who="bob"), ranking("a>b", "two", who="ann"),
        ranking("b>a", "two", who="bob"), ranking("a>b", "three", who="ann"), ranking("a>b", "four", who="ann"),
        ranking("a>b", "four", who="bob"),
    ]  # fmt: skip
    assert agreement_by_prompt(rankings) == {"one": pytest.approx(2 / 3), "two": 0.0, "four": 1.0}
    order = [r.candidates.prompt for r in disputed_first(rankings)]
    assert order == ["two", "two", "one", "one", "four", "four", "three"]


def test_the_best_of_each_prompt_is_a_text_and_keeps_whether_it_was_cut_off() -> None:
    bad = ranking("a>b")
    rankings = [ranking("b>a", "one"), ranking("ab", "two"), ranking("c>a>b", "three")]
    rankings.append(Ranking(bad.candidates, bad.tiers, all_bad=True))
    assert [(t.prompt, t.response, t.finished) for t in best_texts(rankings)] == [
        ("one", " text b", False),
        ("three", " text c", True),
    ]
