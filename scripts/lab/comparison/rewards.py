"""Rewards of tasks that defaults are measured on."""

from __future__ import annotations

from collections.abc import Sequence

LENGTH = 20
SCALE = 6.0


def twenty_words(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """1 for a response of twenty words, and a sixth less for each word more or less.

    The embedded actor's scores have a standard deviation of about 0.9.
    """
    return [1.0 - abs(len(text.split()) - LENGTH) / SCALE for text in responses]
