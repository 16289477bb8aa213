"""A/B tests: who wins, when it stops, what is told, and that an interrupted one ends with the same result."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from agents.cli import ab as script
from agents.preferences import ab
from agents.preferences.ab import first_answers, outcomes
from agents.preferences.ab_report import ab_report, markdown
from agents.preferences.answers import Answers
from agents.preferences.judge import RewardJudge
from agents.preferences.players import player
from agents.preferences.records import Candidates, Ranking, Response, read_candidates, read_rankings
from llm_env.default_task import DEFAULT_MODEL, DEFAULT_REWARD_MODEL
from tests.agents.preferences.test_language_judge import longer
from tests.chat_servers import ChatServer

QUICK = ("--max-new-tokens", "12", "--device", "cpu")


def shorter_is_better(prompts: list[str], responses: list[str]) -> list[float]:
    return [-float(len(r)) for r in responses]


def comparison(number: int, tiers: Sequence[Sequence[str]], annotator: str = "ann", **more: Any) -> Ranking:
    texts = more.pop("texts", (" Good.", " Bad."))
    responses = tuple(Response(f"r{i}", text, True, "ab"[i]) for i, text in enumerate(texts))
    prompt = more.pop("prompt", f"Question {number}?")
    candidates = Candidates(f"p{number}", prompt, responses, more.pop("columns", {}))
    return Ranking(candidates, tuple(map(tuple, tiers)), annotator, **more)


WIN, LOSS, TIE = (("r0",), ("r1",)), (("r1",), ("r0",)), (("r0", "r1"),)


def test_what_a_comparison_says() -> None:
    rankings = [comparison(0, WIN), comparison(1, LOSS), comparison(2, TIE), comparison(3, (), all_bad=True)]
    assert outcomes(rankings) == [1.0, 0.0, 0.5, 0.5]
    again = [comparison(1, WIN, "bob"), *rankings, comparison(0, LOSS, "bob"), comparison(4, LOSS, "a judge")]
    first = first_answers(again, lambda name: name != "a judge")
    assert [(r.candidates.id, r.annotator) for r in first] == [
        ("p1", "bob"),
        ("p0", "ann"),
        ("p2", "ann"),
        ("p3", "ann"),
    ]


def test_the_report_counts_by_length_topic_and_column() -> None:
    texts = ((" One two three four.", " One."), (" One.", " One two."), (" One two.", " One two."))
    rankings = [
        comparison(i, (WIN, WIN, LOSS, TIE)[i % 4], texts=texts[i % 3], columns={"kind": "xy"[i % 2]})
        for i in range(24)
    ]
    report = ab_report(rankings, by=("kind",), topics=("question 1",))
    assert (report["wins"], report["losses"], report["ties"], report["win_rate"]) == (12, 6, 6, 15 / 24)
    assert report["decision"] is None
    assert report["decided"]["share"] == pytest.approx(2 / 3)
    low, high = report["interval"]
    assert low < 0.5 < 15 / 24 < high
    longer_one = report["groups"]["which response is longer"]
    assert {name: g["comparisons"] for name, g in longer_one.items()} == {"A's": 8, "B's": 8, "about as long": 8}
    assert report["groups"]["topic"]["question 1"]["comparisons"] == 11  # 1, and 10 to 19
    kinds = report["groups"]["kind"]
    assert kinds["x"] | {"interval": 0} == {
        **{"comparisons": 12, "wins": 6, "losses": 6, "ties": 0, "win_rate": 0.5, "interval": 0}
    }
    assert kinds["y"]["ties"] == 6
    assert report["words"]["a"] == pytest.approx((4 + 1 + 2) / 3)
    assert report["decided"]["p_value"] <= 1


def test_the_clearest_come_first_and_texts_are_shown_as_they_are() -> None:
    rankings = [
        comparison(i, WIN, scores={"r0": float(s), "r1": 0.0}, texts=(f" <b>{s}</b>\n\n| *x* |", " no"))
        for i, s in enumerate((1, 9, 4))
    ]
    report = {"a": "one", "b": "other", "judge": "me", **ab_report(rankings, examples=2)}
    assert [e["scores"]["a"] for e in report["clearest_wins"]] == [9.0, 4.0]
    assert report["clearest_losses"] == []
    text = markdown(report)
    assert "    <b>9</b>\n    \n    | *x* |" in text
    assert "Undecided after 3 comparisons" in text


def test_players_by_name() -> None:
    assert player(None, "b").model == DEFAULT_MODEL
    best = player("best_of:16", "b")
    assert (best.best_of, best.model, best.by) == (16, DEFAULT_MODEL, DEFAULT_REWARD_MODEL)
    named = player("best_of:4:runs/x/actor?by=gold", "b")
    assert (named.best_of, named.model, named.by) == (4, "runs/x/actor", "gold")
    for name in ("best_of:", "best_of:1", "best_of:x:m?by=gold", "best_of:4:runs/x/actor"):
        with pytest.raises(ValueError, match="by=REWARD"):
            player(name, "b")


def test_the_better_of_several_wins_and_the_test_stops(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--a", "best_of:4", "--judge", "gold", "--output-dir", str(tmp_path), *QUICK, "--topics", "hotel"]
    assert script.main(options) == 0
    report = json.loads((tmp_path / "ab.json").read_text())
    assert report["decision"] == "a"
    assert report["decided_after"] <= report["comparisons"] < 180
    assert report["comparisons"] % ab.CHUNK == 0
    assert "A is better" in capsys.readouterr().out
    assert "**A is better" in (tmp_path / "ab.md").read_text()
    # the best of four by the reward model, not the first of them
    judge = RewardJudge(DEFAULT_REWARD_MODEL, script.LoadSettings("float32", "cpu"))
    scores = judge.scores(read_candidates(tmp_path / "responses.jsonl"))
    assert sum(a > b for a, b in scores) > 0.7 * len(scores)
    # the same command does nothing again, another one is refused
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
    assert script.main(options) == 0
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()} == before
    assert script.main([*options, "--seed", "1"]) == 1
    assert "other settings (seed)" in capsys.readouterr().err


@pytest.mark.parametrize("noise", ["0", "1"])
def test_an_interrupted_test_ends_with_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noise: str
) -> None:
    judge = f"{__name__}:shorter_is_better"
    options = [
        "--a",
        DEFAULT_MODEL,
        "--temperature-b",
        "0.5",
        "--judge",
        judge,
        "--n-prompts",
        "48",
        "--no-stop-early",
        "--noise",
        noise,
        *QUICK,
    ]
    assert script.main([*options, "--output-dir", str(tmp_path / "whole")]) == 0
    append = ab.append_jsonl

    def dies(path: Path, record: dict[str, Any]) -> None:
        if record["id"] == "p40":
            with path.open("a") as file:
                file.write('{"id": "p40", "prom')  # a half line
            raise KeyboardInterrupt
        append(path, record)

    monkeypatch.setattr(ab, "append_jsonl", dies)
    assert script.main([*options, "--output-dir", str(tmp_path / "cut")]) == 130
    assert json.loads((tmp_path / "cut" / "ab.json").read_text())["comparisons"] == ab.CHUNK  # as far as it went
    monkeypatch.setattr(ab, "append_jsonl", append)
    assert script.main([*options, "--output-dir", str(tmp_path / "cut")]) == 0
    for name in ("responses.jsonl", "rankings.jsonl", "ab.json", "ab.md"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    rankings = read_rankings(tmp_path / "whole" / "rankings.jsonl")
    assert len(rankings) == 48
    for ranking in rankings if noise == "0" else []:  # A is the first response, whatever its length
        a, b = (r.text for r in ranking.candidates.responses)
        assert outcomes([ranking])[0] == (1.0 if len(a) < len(b) else 0.5 if len(a) == len(b) else 0.0)


def test_a_language_model_compares_in_both_orders(tmp_path: Path) -> None:
    with ChatServer(longer) as server:
        options = [
            "--a",
            DEFAULT_MODEL,
            "--judge",
            server.judge,
            "--n-prompts",
            "4",
            *QUICK,
            "--output-dir",
            str(tmp_path),
        ]
        assert script.main(options) == 0
        assert len(server.requests) == 8
        assert script.main(options) == 0
        assert len(server.requests) == 8
    assert json.loads((tmp_path / "judges.json").read_text())[server.judge]["pairs"] == 4


def ask_people(
    folder: Path, monkeypatch: pytest.MonkeyPatch, answer: Callable[[Answers], None]
) -> tuple[int, dict[str, Any]]:
    """A test by people on the page, who answer each second; returns the command's status and its report."""
    from agents.preferences import page as pages

    asked = []

    class Page:
        def close(self) -> None:
            asked.append("closed")

    def build(answers: Answers) -> Any:
        assert answers.may_tie
        asked.append(answers)
        return Page()

    def sleep(seconds: float) -> None:
        answer(asked[0])

    monkeypatch.setattr(pages, "build", build)
    monkeypatch.setattr(pages, "launch", lambda page, host, port: "http://here")
    monkeypatch.setattr(pages.time, "sleep", sleep)
    monkeypatch.setattr("agents.local_page.check_page", lambda host, port: None)
    options = ["--a", DEFAULT_MODEL, "--people", "--n-prompts", "30", *QUICK, "--output-dir", str(folder)]
    status = script.main(options)
    assert asked[-1] == "closed"
    return status, json.loads((folder / "ab.json").read_text()) if (folder / "ab.json").is_file() else {}


def test_people_may_find_both_as_good_and_the_page_closes_when_decided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(answers: Answers) -> None:
        number = answers.next("ann")
        assert number is not None
        answers.add("ann", number, [1, 1] if number == 0 else [2, 1])  # B is better

    status, report = ask_people(tmp_path, monkeypatch, answer)
    assert status == 0
    assert (report["decision"], report["decided_after"], report["ties"], report["judge"]) == ("b", 13, 1, "people")


@pytest.mark.parametrize("count", [0, 2])
def test_ctrl_c_on_the_page_leaves_the_report_of_what_people_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    def answer(answers: Answers) -> None:
        for number in range(count):
            answers.add("ann", number, [2, 1])
        raise KeyboardInterrupt

    status, report = ask_people(tmp_path, monkeypatch, answer)
    assert status == 130  # undecided: the same command goes on
    assert report.get("losses", 0) == count
    assert (tmp_path / "ab.md").is_file() == (count > 0)
