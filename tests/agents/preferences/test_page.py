"""The page on which people rank: its file of answers, and the whole of it in a browser."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest

from agents.cli import collect_preferences
from agents.console import PlainConsole
from agents.preferences import page as page_module
from agents.preferences.answers import Answers, Question
from agents.preferences.page import RankingPage
from agents.preferences.records import Candidates, Response, read_rankings
from agents.preferences.settings import RANKING
from tests.browser import needs_browser, open_page
from tests.conftest import ROOT


def candidates(count: int = 3) -> list[Candidates]:
    return [
        Candidates(f"p{i}", f"Question {i}?", tuple(Response(f"r{k}", f" Answer {k} to {i}.") for k in range(3)))
        for i in range(count)
    ]


def test_answers_are_kept_at_once_and_found_again(tmp_path: Path) -> None:
    path = tmp_path / "rankings.jsonl"
    questions = [Question(c) for c in candidates()]
    answers = Answers(path, questions)
    answers.add("ann", 0, [2, 1, 2])
    answers.add("ann", 1, None)
    assert [r["ranking"] for r in map(json.loads, path.read_text().splitlines())] == [[["r1"], ["r0", "r2"]], []]
    again = Answers(path, questions)
    assert again.next("ann") == 2
    assert again.next("bob") == 0
    assert again.done("ann") == 2
    assert again.rankings["ann", "p1", None].all_bad


def test_a_line_that_a_crash_left_unfinished_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "rankings.jsonl"
    questions = [Question(c) for c in candidates()]
    Answers(path, questions).add("ann", 0, [1, 2, 3])
    with path.open("a") as file:
        file.write('{"id": "p1", "prompt": "Quest')
    answers = Answers(path, questions)
    assert answers.next("ann") == 1
    answers.add("ann", 1, [3, 2, 1])
    assert len(read_rankings(path)) == 2
    path.write_bytes(path.read_bytes().removesuffix(b"\n"))  # as an editor may leave it: the last record is whole
    again = Answers(path, questions)
    assert again.done("ann") == 2
    again.add("ann", 2, [1, 2, 3])
    assert len(read_rankings(path)) == 3


def test_skipped_questions_come_last_and_for_that_annotator_only(tmp_path: Path) -> None:
    answers = Answers(tmp_path / "rankings.jsonl", [Question(c) for c in candidates()])
    answers.skip("ann", 0)
    answers.skip("ann", 1)
    assert answers.next("ann") == 2
    assert answers.next("bob") == 0
    answers.add("ann", 2, [1, 2, 3])
    assert answers.next("ann") == 0
    answers.skip("ann", 0)
    assert answers.next("ann") == 1


def test_the_order_is_blind_random_and_the_same_after_a_restart() -> None:
    orders = {tuple(Question(c).order(name)) for c in candidates(8) for name in ("ann", "bob")}
    assert len(orders) > 3
    assert Question(candidates()[0]).order("ann") == Question(candidates()[0]).order("ann")


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RankingPage:
    """The page without gradio: an update is the dict of its arguments, and what stays as it is `None`."""
    gradio = SimpleNamespace(update=lambda **changes: changes, skip=lambda: None, Warning=lambda text: None)
    monkeypatch.setitem(sys.modules, "gradio", gradio)
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    questions = [Question(candidates()[0]), Question(candidates(2)[1], "polite")]
    return RankingPage(Answers(tmp_path / "rankings.jsonl", questions))


def test_ranks_on_the_page_are_those_of_the_responses_that_stand_there(page: RankingPage) -> None:
    number, title, note, prompt, *rest = page.show("ann")
    assert (number, note, prompt["value"]) == (0, "", "Question 0?")
    assert title.startswith("0 of 2 done.")
    texts, ranks, buttons = rest[:3], rest[3:6], rest[6:]
    assert sorted(t["value"] for t in texts) == [f"Answer {k} to 0." for k in range(3)]
    assert all(r["choices"] == ["1", "2", "3"] and r["value"] is None for r in ranks)
    assert all(b["visible"] for b in buttons)
    choices = [str(int(t["value"].split()[1]) + 1) for t in texts]  # answer 0 is the best
    assert len(page.submit("ann", 0, *choices)) == len(page.stay("")) == 4 + 2 * 3 + 3
    assert page.answers.rankings["ann", "p0", None].tiers == (("r0",), ("r1",), ("r2",))
    assert page.show("ann")[1].startswith("Which is more polite? 1 of 2 done.")
    page.all_bad("ann", 1)
    thanks = page.show("ann")
    assert thanks[1] == "All 2 are done. Thank you."
    assert not any(update["visible"] for update in thanks[3:])


def test_the_page_refuses_half_a_ranking_and_one_that_says_nothing(page: RankingPage) -> None:
    assert page.submit("ann", 0, "1", None, "2")[2] == "**No rank yet for response B.**"
    assert "All have the same rank" in page.submit("ann", 0, "2", "2", "2")[2]
    assert not page.answers.rankings
    assert page.start(" ")[:3] == [None, None, None]
    assert page.start(" ann ")[0] == "ann"
    assert page.skip("ann", 0)[0] == 1  # the other question comes first
    page.answers.may_tie = True
    assert page.submit("ann", 0, "2", "2", "2")[2] == "Saved."


def test_more_responses_than_letters(page: RankingPage, tmp_path: Path) -> None:
    many = Candidates("p", "Question?", tuple(Response(f"r{k}", f" Answer {k}.") for k in range(30)))
    shown = RankingPage(Answers(tmp_path / "many.jsonl", [Question(many)])).show("ann")
    labels = [text["label"] for text in shown[4:34]]
    assert labels[:2] + labels[25:29] == [f"Response {name}" for name in ("A", "B", "Z", "AA", "AB", "AC")]


def test_an_answer_is_kept_once_whichever_window_it_came_from(page: RankingPage) -> None:
    assert page.submit("ann", 0, "1", "2", "3")[2] == "Saved."
    first = page.answers.rankings["ann", "p0", None]
    assert page.submit("ann", 0, "3", "2", "1")[:3:2] == [1, ""]  # a second window, in which it was open too
    assert page.all_bad("ann", 0)[2] == ""
    assert page.submit("bob", 0, "3", "2", "1")[2] == "Saved."
    assert [r.annotator for r in read_rankings(page.answers.path)] == ["ann", "bob"]
    assert page.answers.rankings["ann", "p0", None] == first


def test_nobody_answers_under_no_name(page: RankingPage) -> None:
    for told in (page.submit("", None, "1", "2", "3"), page.skip("", None), page.all_bad("", None)):
        assert (told[0], told[2]) == (None, "**This page does not know any more who you are: reload it.**")
        assert len(told) == len(page.stay(""))


def test_ctrl_c_ends_the_page_and_what_was_said_is_summed_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("gradio")
    (tmp_path / "responses.jsonl").write_text("".join(json.dumps(c.to_json()) + "\n" for c in candidates()))

    def build(answers: Answers) -> SimpleNamespace:
        for name, ranks in (("ann", [1, 2, 3]), ("bob", [3, 2, 1])):
            answers.add(name, 0, ranks)
        return SimpleNamespace(close=lambda: None)

    def ctrl_c(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(page_module, "build", build)
    monkeypatch.setattr(page_module, "launch", lambda *args: "here")
    monkeypatch.setattr(page_module.time, "sleep", ctrl_c)
    assert collect_preferences.main(["--output-dir", str(tmp_path), "--people", "--port", str(free_port())]) == 0
    assert "Krippendorff's α = " in capsys.readouterr().out
    assert len((tmp_path / "pairs.jsonl").read_text().splitlines()) == 6
    console = PlainConsole(quiet=True)
    with pytest.raises(KeyboardInterrupt):  # a test or a round waits for answers, and stops
        page_module.serve(candidates(), tmp_path / "r.jsonl", (), "", 0, console, RANKING, until=lambda answers: False)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def start_server(folder: Path, port: int, *more: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(ROOT / "scripts" / "collect_preferences.py"), "--output-dir", str(folder)]
    server = subprocess.Popen([*command, "--people", "--port", str(port), *more], cwd=ROOT, stdout=subprocess.DEVNULL)
    for _ in range(600):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=1).read()
            return server
        except OSError:
            if server.poll() is not None:
                break
            time.sleep(0.2)
    server.kill()
    raise AssertionError("the page did not come up")


def rank_by_text(page, expected_done: int) -> None:
    """Gives the response whose answer has the lowest number the best rank, whatever the order on the page."""
    for place in range(3):
        text = page.locator(f"#response{place} textarea").input_value()
        number = int(text.split()[1])
        page.locator(f"#rank{place} label").filter(has_text=str(number + 1)).click()
    page.locator("#submit").click()
    page.wait_for_function(f"document.querySelector('#status').innerText.includes('{expected_done} ')")
    page.wait_for_timeout(300)


@needs_browser
@pytest.mark.slow
def test_ranking_in_a_browser_survives_a_killed_server(tmp_path: Path) -> None:
    pytest.importorskip("gradio")
    (tmp_path / "responses.jsonl").write_text("".join(json.dumps(c.to_json()) + "\n" for c in candidates()))
    port = free_port()
    server = start_server(tmp_path, port)
    try:
        with open_page(f"http://127.0.0.1:{port}") as page:
            page.locator("#begin").wait_for()
            page.locator("#name textarea, #name input").first.fill("ann")
            page.locator("#begin").click()
            page.locator("#response0").wait_for()
            assert "Question 0" in page.locator("#prompt textarea").input_value()
            shown = [page.locator(f"#response{i} textarea").input_value() for i in range(3)]
            assert sorted(shown) == [f"Answer {k} to 0." for k in range(3)]
            rank_by_text(page, 1)
            assert "Question 1" in page.locator("#prompt textarea").input_value()
            rank_by_text(page, 2)
            assert not page.errors
        server.send_signal(signal.SIGKILL)
        server.wait()
        assert len(read_rankings(tmp_path / "rankings.jsonl")) == 2
        server = start_server(tmp_path, port)
        with open_page(f"http://127.0.0.1:{port}") as page:
            page.locator("#begin").wait_for()
            page.locator("#name textarea, #name input").first.fill("ann")
            page.locator("#begin").click()
            page.locator("#response0").wait_for()
            assert "2 of 3" in page.locator("#status").inner_text()
            assert "Question 2" in page.locator("#prompt textarea").input_value()
            page.locator("#submit").click()  # nothing ranked yet: refused, with a reason
            page.get_by_text("No rank yet").first.wait_for()
            page.screenshot(path=str(tmp_path / "page.png"))
            rank_by_text(page, 3)
            assert "All 3 are done" in page.locator("#status").inner_text()
    finally:
        server.kill()
        server.wait()
    rankings = read_rankings(tmp_path / "rankings.jsonl")
    assert [r.candidates.id for r in rankings] == ["p0", "p1", "p2"]
    assert all(r.tiers == (("r0",), ("r1",), ("r2",)) and r.annotator == "ann" for r in rankings)


def begin(page, name: str) -> None:
    page.locator("#begin").wait_for()
    page.locator("#name textarea, #name input").first.fill(name)
    page.locator("#begin").click()
    page.locator("#response0").wait_for()


def give_stars(page, expected_done: int) -> None:
    """Gives answer 0 one star, answer 1 three and answer 2 five, whatever the order on the page."""
    for place in range(3):
        number = int(page.locator(f"#response{place} textarea").input_value().split()[1])
        page.locator(f"#rank{place} label").filter(has_text=str(1 + 2 * number)).click()
    page.locator("#submit").click()
    page.wait_for_function(f"document.querySelector('#status').innerText.includes('{expected_done} ')")
    page.wait_for_timeout(300)


@needs_browser
@pytest.mark.slow
def test_stars_in_a_browser_survive_a_killed_server(tmp_path: Path) -> None:
    pytest.importorskip("gradio")
    (tmp_path / "responses.jsonl").write_text("".join(json.dumps(c.to_json()) + "\n" for c in candidates()))
    port = free_port()
    server = start_server(tmp_path, port, "--page", "stars")
    try:
        with open_page(f"http://127.0.0.1:{port}") as page:
            begin(page, "ann")
            assert page.locator("#rank0 label").count() == 5
            assert not page.locator("#all_bad").is_visible()
            page.locator("#submit").click()  # nothing given yet: refused, with a reason
            page.get_by_text("No stars yet").first.wait_for()
            give_stars(page, 1)
            give_stars(page, 2)
            assert not page.errors
        server.send_signal(signal.SIGKILL)
        server.wait()
        assert len(read_rankings(tmp_path / "rankings.jsonl")) == 2
        server = start_server(tmp_path, port, "--page", "stars")
        with open_page(f"http://127.0.0.1:{port}") as page:
            begin(page, "ann")
            assert "2 of 3" in page.locator("#status").inner_text()
            assert "Question 2" in page.locator("#prompt textarea").input_value()
            give_stars(page, 3)
            assert "All 3 are done" in page.locator("#status").inner_text()
    finally:
        server.kill()
        server.wait()
    rankings = read_rankings(tmp_path / "rankings.jsonl")
    assert [r.candidates.id for r in rankings] == ["p0", "p1", "p2"]
    assert all(r.stars == {"r0": 1, "r1": 3, "r2": 5} and r.annotator == "ann" for r in rankings)
