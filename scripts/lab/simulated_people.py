"""People who judge reviews of the embedded default: by the gold rule, with noise, in each of the ways that the pages offer."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from llm_env.default_task.gold import (
    BAD_PERSON,
    BAD_THING,
    BAD_VERB,
    GOOD_PERSON,
    GOOD_THING,
    GOOD_VERB,
    RUDE,
    gold_score,
)

THRESHOLDS = (-3.5, -2.0, -0.5, 1.5)
"""Perceived worths from which a response gets 2, 3, 4 and 5 stars."""
LEAST_GOOD = -0.5
"""Perceived worth from which a thumb goes up."""
KINDER = {
    bad: kind
    for bads, kinds in ((BAD_THING, GOOD_THING), (BAD_PERSON, GOOD_PERSON), (BAD_VERB, GOOD_VERB))
    for bad, kind in zip(bads, kinds * 2, strict=False)
}
"""What a person writes in place of a bad word."""


@dataclass
class Person:
    """Somebody who decides.

    Attributes:
        seed: Seed of all decisions.
        noise: Scale of the logistic noise in what a response seems to be worth, in units of the gold score.
        care: How probable it is that somebody who corrects changes a fault.
    """

    seed: int
    noise: float = 0.5
    care: float = 0.8
    rng: random.Random = field(init=False)

    def __post_init__(self) -> None:
        """Draws from a generator of its own."""
        self.rng = random.Random(self.seed)

    def worth(self, prompt: str, text: str) -> float:
        """What a response seems to be worth, in units of the gold score."""
        share = self.rng.uniform(1e-9, 1 - 1e-9)
        return gold_score([prompt], [text])[0] + self.noise * math.log(share / (1 - share))

    def ranked(self, record: dict[str, Any]) -> dict[str, Any]:
        """A record of responses, put in order: a line of ``rankings.jsonl``."""
        worths = {r["id"]: self.worth(record["prompt"], r["text"]) for r in record["responses"]}
        return {**record, "ranking": [[i] for i in sorted(worths, key=worths.__getitem__, reverse=True)]}

    def starred(self, record: dict[str, Any]) -> dict[str, Any]:
        """A record of responses with their stars."""
        stars = {
            r["id"]: 1 + sum(self.worth(record["prompt"], r["text"]) > t for t in THRESHOLDS)
            for r in record["responses"]
        }
        return {**record, "stars": stars}

    def thumbed(self, prompt: str, text: str) -> bool:
        """Whether the thumb goes up."""
        return self.worth(prompt, text) > LEAST_GOOD

    def corrected(self, text: str) -> str:
        """Rewrites a response: kind words for unkind ones, no rude sentence, none that breaks off; each with `care`."""
        sentences = [s for s in re.split(r"(?<=[.!?])\s+", text.strip()) if s]
        kept = []
        for sentence in sentences:
            words = re.findall(r"[a-z]+", sentence.lower())
            is_fault = any(word in RUDE for word in words)
            is_fault = is_fault or not sentence.endswith((".", "!", "?"))
            if is_fault and self.rng.random() < self.care:
                continue
            kept.append(re.sub(r"[A-Za-z]+", lambda match: self._kinder(match.group()), sentence))
        return " " + " ".join(kept) if kept else text

    def _kinder(self, word: str) -> str:
        return KINDER[word] if word in KINDER and self.rng.random() < self.care else word


def choices(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first two responses of each ranking, as a pair in TRL's format."""
    pairs = []
    for record in records:
        order = [tier[0] for tier in record["ranking"]]
        one, other = record["responses"][:2]
        better, worse = (one, other) if order.index(one["id"]) < order.index(other["id"]) else (other, one)
        pairs.append({"prompt": record["prompt"], "chosen": better["text"], "rejected": worse["text"]})
    return pairs
