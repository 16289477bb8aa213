"""The reward: what a response is worth. Training calls `score`; change it to what you want."""

from __future__ import annotations

import re

LONG = 12
"""Words above which each further one costs something."""


def score(prompts: list[str], responses: list[str], wanted: list[str]) -> list[float]:
    """Scores responses: 1 for the word that the prompt's record wants, less a little for length.

    Args:
        prompts: The texts that were responded to.
        responses: What the policy wrote, one for each prompt.
        wanted: The field `wanted` of the prompts' records in prompts.jsonl. Any field can be asked for by its name.

    Returns:
        One number for each response; higher is better.
    """
    scores = []
    for response, word in zip(responses, wanted, strict=True):
        found = re.search(rf"\b{re.escape(word)}\b", response, re.IGNORECASE) is not None
        too_long = max(0, len(response.split()) - LONG)
        scores.append(float(found) - 0.05 * too_long)
    return scores
