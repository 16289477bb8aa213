from __future__ import annotations

import math

import pytest

from agents.diversity import distinct_n, repetition, self_bleu


def test_distinct_by_hand() -> None:
    texts = ["the cat sat", "The cat ran"]
    assert distinct_n(texts, 1) == 4 / 6
    assert distinct_n(texts, 2) == 3 / 4
    assert math.isnan(distinct_n(["one"], 2))


def test_self_bleu_at_its_ends_and_by_hand() -> None:
    assert self_bleu(["a b c d e"] * 3) == pytest.approx(1)
    assert self_bleu(["a b c d e", "f g h i j"]) == 0
    assert math.isnan(self_bleu(["alone", ""]))
    # a b c d against a b x d: 3 of 4 words, 1 of 3 pairs, 0 of 2 and 0 of 1; all but words smoothed by one
    want = (3 / 4 * (1 + 1) / (3 + 1) * (0 + 1) / (2 + 1) * (0 + 1) / (1 + 1)) ** 0.25
    assert self_bleu(["a b c d", "a b x d"]) == pytest.approx(want)


def test_self_bleu_takes_counts_from_others_only_and_punishes_brevity() -> None:
    three = self_bleu(["x x x x", "a b c d", "a b c e"])
    alone = self_bleu(["a b c d", "a b c e"])
    assert three == pytest.approx(2 / 3 * alone)  # its own repetition is no other text's
    short = self_bleu(["a b c d", "a b c d e f g h"])
    assert self_bleu(["a b c d", "a b c d e f g h", "a b c d"]) > short
    # all of the short one is in the long one, but for its length; of the long one 4 of 8 words, 3 of 7 pairs, …
    long = (4 / 8 * (3 + 1) / (7 + 1) * (2 + 1) / (6 + 1) * (1 + 1) / (5 + 1)) ** 0.25
    assert short == pytest.approx((math.exp(1 - 8 / 4) + long) / 2)


def test_a_draw_of_many_is_near_the_whole() -> None:
    texts = [f"the {w} was {a} and {b}" for w in ("cat", "dog", "cow") for a in "xyz" for b in "uvw"]
    assert self_bleu(texts, most=20) == pytest.approx(self_bleu(texts), abs=0.1)


@pytest.mark.parametrize(
    ("text", "share"),
    [("", 0.0), ("a b", 0.0), ("a b c", 0.0), ("a b c a b c", 0.25), ("Very very very very", 0.5), ("a b c d e", 0.0)],
)
def test_repetition_by_hand(text: str, share: float) -> None:
    assert repetition(text) == pytest.approx(share)
