"""Tests of the reward: python -m pytest test_reward.py. A reward that is wrong is learned all the same."""

from __future__ import annotations

import json
from pathlib import Path

from reward import LONG, score

HERE = Path(__file__).parent


def test_the_wanted_word_is_paid_for() -> None:
    """In any case, but not as a part of another word."""
    responses = ["The Soup was hot.", "The bread was fresh.", "Soups of all kinds."]
    assert score(["How was it?"] * 3, responses, ["soup"] * 3) == [1.0, 0.0, 0.0]


def test_length_costs() -> None:
    """Each word above LONG."""
    short, long = "word " * LONG, "word " * (LONG + 2)
    assert score(["Say it:"] * 2, [short, long], ["no"] * 2) == [0.0, -0.1]


def test_every_prompt_has_what_the_reward_asks_for() -> None:
    """A record without it would stop the training."""
    lines = (HERE / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    assert all({"prompt", "wanted"} <= json.loads(line).keys() for line in lines)
