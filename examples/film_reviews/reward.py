"""The reward: how sure the classifier of `prepare.py` is that a review is good, in log-odds."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent


def vectorize(texts: list[str]) -> Any:
    """Hashed, normalized counts of words and word pairs, shape (n, 2**18), sparse."""
    from sklearn.feature_extraction.text import HashingVectorizer

    return HashingVectorizer(n_features=2**18, ngram_range=(1, 2)).transform(texts)


@lru_cache
def classifier() -> tuple[np.ndarray, float]:
    """Weights and bias."""
    path = HERE / "classifier.npz"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there; run first: python examples/film_reviews/prepare.py")
    data = np.load(path, allow_pickle=False)
    return data["weights"], float(data["bias"][0])


def log_odds(prompts: list[str], responses: list[str]) -> list[float]:
    """Log-odds that the response, its prompt left aside, is from a good review; about -4 to 4 for a sentence or two."""
    weights, bias = classifier()
    features = vectorize(responses)
    return (features @ weights + bias).tolist()


def vader(prompts: list[str], responses: list[str]) -> list[float]:
    """An independent check that nobody trained on: VADER's compound score of the response, -1 to 1.

    Hutto and Gilbert 2014; needs ``pip install vaderSentiment``.
    """
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    analyzer = SentimentIntensityAnalyzer()
    return [float(analyzer.polarity_scores(r)["compound"]) for r in responses]
