"""How much the responses of a set differ from each other, and a response from itself: pure functions of texts.

A policy that writes the same good sentence for every prompt may have a high score and a small KL; this shows it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

BLEU_ORDERS = 4  # longest n-gram of BLEU-4


def diversity(texts: Sequence[str]) -> dict[str, float]:
    """Gives distinct-1, distinct-2 and self-BLEU of a set of responses."""
    return {"distinct_1": distinct_n(texts, 1), "distinct_2": distinct_n(texts, 2), "self_bleu": self_bleu(texts)}


def words(text: str) -> list[str]:
    """Splits a text into the words that are compared: lower case, split at white space."""
    return text.lower().split()


def ngrams(tokens: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    """Counts how often each run of n words occurs."""
    return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Number of different n-grams of all texts over the number of all their n-grams, 0 to 1.

    Li et al. 2016, "A Diversity-Promoting Objective Function" (https://arxiv.org/abs/1510.03055). It falls with the number of
    texts: compare equal numbers only. NaN where no text has n words.
    """
    counts: Counter[tuple[str, ...]] = Counter()
    for text in texts:
        counts.update(ngrams(words(text), n))
    total = sum(counts.values())
    return len(counts) / total if total else math.nan


def repetition(text: str, n: int = 3) -> float:
    """The share of a text's n-grams that stand in it before, 0 to 1; 0 for a text of fewer than n words.

    seq-rep-n of Welleck et al. 2020, "Neural Text Generation with Unlikelihood Training" (https://arxiv.org/abs/1908.04319),
    with 3 where they have 4: responses here may have a dozen words.
    """
    different = distinct_n([text], n)
    return 0.0 if math.isnan(different) else 1 - different


def self_bleu(texts: Sequence[str], most: int = 200, seed: int = 0) -> float:
    """Mean BLEU-4 of each text against all others, 0 to 1: 1 where all are the same.

    Zhu et al. 2018, "Texygen" (https://arxiv.org/abs/1802.01886). BLEU: geometric mean of the n-gram precisions, each count
    clipped to the most that one other text has, times the brevity penalty to the nearest length (Papineni et al. 2002,
    https://aclanthology.org/P02-1040); precisions of two words and more are smoothed by adding 1 above and below the line
    (Lin and Och 2004), so that short texts do not all score 0.

    Args:
        texts: The texts, at least two; empty ones are left out.
        most: Of more texts than this, this many are drawn: the time grows with the texts times their n-grams.
        seed: Seed of that draw.
    """
    kept = [w for w in map(words, texts) if w]
    if len(kept) > most:
        chosen = np.random.default_rng(seed).choice(len(kept), most, replace=False)
        kept = [kept[i] for i in sorted(chosen)]
    if len(kept) < 2:
        return math.nan
    grams = [[ngrams(w, n) for n in range(1, BLEU_ORDERS + 1)] for w in kept]
    # For each n-gram: the highest count in one text, which text that is, and the highest count elsewhere. With these, clipping
    # a text's counts to those of the other texts is a look-up.
    highest: list[dict[tuple[str, ...], tuple[int, int, int]]] = [{} for _ in range(BLEU_ORDERS)]
    for index, orders in enumerate(grams):
        for table, counts in zip(highest, orders, strict=True):
            for gram, count in counts.items():
                best, owner, second = table.get(gram, (0, -1, 0))
                table[gram] = (count, index, best) if count > best else (best, owner, max(second, count))
    lengths = [len(w) for w in kept]
    return float(np.mean([_bleu(i, grams[i], highest, lengths) for i in range(len(kept))]))


def _bleu(
    index: int,
    orders: list[Counter[tuple[str, ...]]],
    highest: list[dict[tuple[str, ...], tuple[int, int, int]]],
    lengths: list[int],
) -> float:
    """BLEU-4 of one text against all others.

    Args:
        index: Index of the text in the list, from 0.
        orders: Its n-gram counts, n from 1 to 4.
        highest: For each n, an n-gram's highest count in one text, that text's place, and the highest count elsewhere.
        lengths: Words of all texts.
    """
    logs = []
    for n, (counts, table) in enumerate(zip(orders, highest, strict=True), 1):
        hits = 0
        for gram, count in counts.items():
            best, owner, second = table[gram]
            hits += min(count, second if owner == index else best)
        total, smooth = sum(counts.values()), float(n > 1)
        if hits + smooth == 0:
            return 0.0
        logs.append(math.log((hits + smooth) / (total + smooth)))
    length = lengths[index]
    nearest = min((abs(other - length), other) for i, other in enumerate(lengths) if i != index)[1]
    brevity = min(0.0, 1 - nearest / length)
    return math.exp(sum(logs) / BLEU_ORDERS + brevity)
