"""Simulated people decide by the gold rule, and what they leave is what the pages leave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agents.preferences.records import read_rankings
from simulated_people import Person, choices

TEXTS = (
    " The soup was poor. Only fools pay for this.",
    " The soup was great.",
    " The soup was great. With kind",
    " We were there.",
)


def record(texts: tuple[str, ...] = TEXTS) -> dict[str, Any]:
    return {"id": "p0", "prompt": "How was it?", "responses": [{"id": f"r{i}", "text": t} for i, t in enumerate(texts)]}


def test_without_noise_decisions_follow_the_gold_score() -> None:
    """The four are worth -3, 1, 0 (a kind word, but no end) and 0."""
    sure = Person(seed=0, noise=0.0)
    order = [tier[0] for tier in sure.ranked(record())["ranking"]]
    assert (order[0], order[-1]) == ("r1", "r0")
    assert sure.starred(record())["stars"] == {"r0": 2, "r1": 4, "r2": 4, "r3": 4}
    assert [sure.thumbed("", text) for text in TEXTS] == [False, True, True, True]


def test_noise_turns_some_decisions() -> None:
    unsure = Person(seed=0, noise=2.0)
    thumbs = [unsure.thumbed("", TEXTS[1]) for _ in range(400)]
    # P(1 + 2·logistic > -0.5) = σ(0.75)
    assert sum(thumbs) / 400 == pytest.approx(0.679, abs=0.06)


def test_corrections_mend_faults_alone() -> None:
    careful = Person(seed=0, care=1.0)
    assert careful.corrected(TEXTS[0]) == " The soup was great."
    assert careful.corrected(TEXTS[1]) == TEXTS[1]
    assert careful.corrected(" I hated the waiter. He was lazy and") == " I loved the waiter."
    assert careful.corrected(" The wai") == " The wai"  # nothing would be left
    assert Person(seed=0, care=0.0).corrected(TEXTS[0]) == TEXTS[0]


def test_files_are_those_of_the_pages(tmp_path: Path) -> None:
    sure = Person(seed=0, noise=0.0)
    lines = [sure.ranked(record()), {**sure.starred(record()), "id": "p1"}, *choices([sure.ranked(record())])]
    (tmp_path / "all.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    ranked, starred, chosen = read_rankings(tmp_path / "all.jsonl")
    assert ranked.tiers[0] == ("r1",)
    assert set(starred.tiers[0]) == {"r1", "r2", "r3"}
    better, worse = (chosen.candidates.response(tier[0]).text for tier in chosen.tiers)
    assert (better, worse) == (TEXTS[1], TEXTS[0])
