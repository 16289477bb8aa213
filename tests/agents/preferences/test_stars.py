"""Stars: their two forms in files, what becomes of them as rankings, and the page that takes them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agents.preferences.agreement import agreement
from agents.preferences.answers import Answers, Question
from agents.preferences.page import StarPage
from agents.preferences.records import Candidates, Response, read_rankings, write_jsonl
from agents.preferences.selection import pair_records
from agents.preferences.stars import tiers_by_stars


def several(**changes: Any) -> dict[str, Any]:
    responses = [{"id": name, "text": f" Text {name}."} for name in "abc"]
    return {"id": "p0", "prompt": "How?", "responses": responses, "stars": {"a": 5, "b": 2, "c": 5}, **changes}


def single(text: str, stars: Any, **changes: Any) -> dict[str, Any]:
    return {"prompt": "How?", "response": text, "stars": stars, **changes}


def written(path: Path, *records: Any) -> Path:
    write_jsonl(path, list(records))
    return path


def test_equal_stars_tie_and_more_stars_stand_above() -> None:
    assert tiers_by_stars({"a": 2, "b": 5, "c": 2, "d": 3}) == (("b",), ("d",), ("a", "c"))


def test_stars_of_several_responses_are_a_ranking(tmp_path: Path) -> None:
    (ranking,) = read_rankings(written(tmp_path / "s.jsonl", several(annotator="ann")))
    assert ranking.tiers == (("a", "c"), ("b",))
    assert ranking.stars == {"a": 5, "b": 2, "c": 5}
    assert read_rankings(written(tmp_path / "again.jsonl", ranking.to_json()))[0] == ranking
    assert [(p["chosen"], p["rejected"], p["margin"]) for p in pair_records([ranking])] == [
        (" Text a.", " Text b.", 3.0),
        (" Text c.", " Text b.", 3.0),
    ]


def test_single_responses_to_one_prompt_by_one_annotator_become_one_ranking(tmp_path: Path) -> None:
    records = [
        single(" Good.", 5, annotator="ann"),
        single(" Bad.", 1, annotator="bob"),
        {"prompt": "Other?", "response": " Fine.", "stars": 3, "annotator": "ann"},
        single(" Bad.", 1, annotator="ann", finished=False),
    ]
    mine, bobs, other = read_rankings(written(tmp_path / "s.jsonl", *records))
    assert mine.tiers == (("r0",), ("r1",))
    assert [(r.text, r.finished) for r in mine.candidates.responses] == [(" Good.", True), (" Bad.", False)]
    assert (bobs.stars, other.stars) == ({"r0": 1}, {"r0": 3})
    assert not other.pairs()


def test_stars_in_csv_are_numbers(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text(
        "prompt,response,stars,finished,aspect\nHow?, Good.,4,True,\nHow?, Bad.,2,false,\nHow?, So.,2,,\n",
        encoding="utf-8",
    )
    (ranking,) = read_rankings(tmp_path / "s.csv")
    assert ranking.stars == {"r0": 4, "r1": 2, "r2": 2}
    assert [r.finished for r in ranking.candidates.responses] == [True, False, True]
    assert ranking.aspect is None


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (single(" x", 6), r"stars=6 must be a whole number, at least 1, at most 5"),
        (single(" x", 0), "stars=0 must be"),
        (single(" x", 4.5), r"stars=4\.5 must be"),
        (single(" x", True), "stars=True must be"),
        (single(" x", "many"), "stars='many' must be"),
        (single(" ", 3), "'stars' need a 'prompt' and a 'response'"),
        ({"prompt": "How?", "stars": 3}, "'stars' need a 'prompt' and a 'response'"),
        (several(stars={"a": 5, "b": 7}), "b: stars=7 must be"),
        (several(stars={"a": 5, "x": 1}), "'stars' names x, but the responses are a, b, c"),
        (several(stars={}), "'stars' must give numbers"),
        (several(stars=[5, 2, 5]), "'stars' must give numbers"),
        (several(ranking=[["b"], ["a", "c"]]), "'ranking' and 'stars' contradict each other"),
    ],
)
def test_broken_stars_are_refused_with_file_and_line(tmp_path: Path, record: Any, message: str) -> None:
    path = written(tmp_path / "s.jsonl", single(" Fine.", 3), record)
    with pytest.raises(ValueError, match=rf"s\.jsonl, line 2: .*{message}"):
        read_rankings(path)


def candidates(count: int) -> list[Candidates]:
    return [
        Candidates(f"p{i}", f"Question {i}?", tuple(Response(f"r{k}", f" Answer {k}.") for k in range(3)))
        for i in range(count)
    ]


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StarPage:
    """The page without gradio: an update is the dict of its arguments, and what stays as it is `None`."""
    gradio = SimpleNamespace(update=lambda **changes: changes, skip=lambda: None, Warning=lambda text: None)
    monkeypatch.setitem(sys.modules, "gradio", gradio)
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    questions = [Question(candidates(1)[0]), Question(candidates(2)[1], "polite")]
    return StarPage(Answers(tmp_path / "rankings.jsonl", questions, in_stars=True))


def test_stars_on_the_page_are_those_of_the_responses_that_stand_there(page: StarPage) -> None:
    _, title, _, _, *rest = page.show("ann")
    assert title == "0 of 2 done. Stars for each response, 1 (bad) to 5 (very good)."
    choices, (_, all_bad, _) = rest[3:6], rest[6:]
    assert all(c["choices"] == ["1", "2", "3", "4", "5"] and c["value"] is None for c in choices)
    assert not all_bad["visible"]
    assert page.submit("ann", 0, "5", None, "1")[2] == "**No stars yet for response B.**"
    for name in ("ann", "bob", "cid", "dan"):  # each sees another order
        texts = page.show(name)[4:7]
        stars = [str(int(t["value"].split()[1].rstrip(".")) + 2) for t in texts]  # answer 0 gets 2, answer 2 gets 4
        page.submit(name, 0, *stars)
        assert page.answers.rankings[name, "p0", None].stars == {"r0": 2, "r1": 3, "r2": 4}
    assert page.show("ann")[1].startswith("How polite is each? 1 of 2 done.")
    page.submit("ann", 1, "3", "3", "3")  # all alike says something about each
    (line, *_) = read_rankings(page.answers.path)
    assert line.tiers == (("r2",), ("r1",), ("r0",))
    assert agreement([line])["annotators"] == ["ann"]


def test_rankings_in_the_folder_are_no_stars(tmp_path: Path) -> None:
    path, questions = tmp_path / "rankings.jsonl", [Question(c) for c in candidates(2)]
    Answers(path, questions).add("ann", 0, [1, 2, 3])
    stars = Answers(path, questions, in_stars=True)
    assert stars.next("ann") == 0
    stars.add_stars("ann", 0, [1, 5, 5])
    assert Answers(path, questions, in_stars=True).next("ann") == 1
    assert json.loads(path.read_text().splitlines()[1])["stars"] == {"r0": 1, "r1": 5, "r2": 5}
