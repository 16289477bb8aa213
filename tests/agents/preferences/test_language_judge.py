"""Language models that rank: both orders, ties and bias, what is kept and not asked again, agreement with people."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agents.cli import collect_preferences
from agents.preferences.journal import Journal, Question
from agents.preferences.judge_report import Pair, described, grades_report, labels_report, pairs_report
from agents.preferences.judges import load_judge
from agents.preferences.records import Candidates, Ranking, Response, read_rankings
from agents.preferences.settings import CollectionSettings
from llm_env.lm.names import LoadSettings
from llm_env.reward.endpoint import KEYS_VARIABLE
from llm_env.reward.judges.reading import Reply
from llm_env.reward.scores import RewardModelError
from tests.chat_servers import ChatServer
from tests.conftest import ROOT
from tests.reward_servers import ScriptedServer, free_port

CPU = LoadSettings("float32", "cpu")
KEY = "sk-s3cret/key+1"


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_env.reward.limits.FIRST_PAUSE", 0.001)


def candidates(*texts: str, name: str = "p0") -> Candidates:
    return Candidates(name, f"How was {name}?", tuple(Response(f"r{i}", t) for i, t in enumerate(texts)))


def shown(question: str) -> list[str]:
    """The responses in a question of the shipped instructions."""
    return re.findall(r"\[Response(?: [AB])?\]\n(.*?)\n\[End", question, re.DOTALL)


def longer(question: str) -> str:
    """A judge that prefers the longer response, and of equally long ones the first; its grade is a length."""
    texts = shown(question)
    if len(texts) == 1:
        return str(min(10, len(texts[0])))
    return "B" if len(texts[1]) > len(texts[0]) else "A"


def judged(name: str, *asked: Candidates, folder: Path, **settings: Any) -> tuple[list[Ranking], dict[str, Any]]:
    judge = load_judge(name, CollectionSettings(**settings), CPU, seed=0)
    return judge.rank(asked, folder), judge.report(asked, folder)


def write_responses(folder: Path, *records: Candidates) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "responses.jsonl").write_text("".join(json.dumps(c.to_json()) + "\n" for c in records))


def collect(folder: Path, *options: str) -> int:
    return collect_preferences.main(["--output-dir", str(folder), *options])


def test_each_two_are_compared_in_both_orders_and_what_turns_is_a_tie(tmp_path: Path) -> None:
    with ChatServer(longer) as server:
        (ranking,), report = judged(server.judge, candidates("xx", "x", "xxx", "yy"), folder=tmp_path)
    assert ranking.tiers == (("r2",), ("r0", "r3"), ("r1",))
    assert ranking.scores == {"r0": 1.5, "r1": 0, "r2": 3, "r3": 1.5}
    assert ranking.annotator == server.judge
    orders = [tuple(shown(q)) for q in server.questions]
    assert sorted(orders) == sorted(
        (a, b) for a in ("xx", "x", "xxx", "yy") for b in ("xx", "x", "xxx", "yy") if a != b
    )
    assert report["pairs"] == 6
    assert (report["decided"]["count"], report["turned"]["count"], report["turned_to_first"]["count"]) == (5, 1, 1)
    assert (report["first_place"]["count"], report["first_place"]["of"]) == (7, 12)


@pytest.mark.parametrize(("letter", "to_first"), [("A", 6), ("B", 0)])
def test_a_judge_that_always_says_one_letter_decides_nothing(letter: str, to_first: int, tmp_path: Path) -> None:
    with ChatServer(lambda question: letter) as server:
        asked = (candidates("x", "y", "z"), candidates("x", "y", "z", name="p1"))
        rankings, report = judged(server.judge, *asked, folder=tmp_path)
    assert [r.tiers for r in rankings] == [(("r0", "r1", "r2"),)] * 2
    assert report["decided"] == {"count": 0, "of": 6, "share": 0, "interval": [0, pytest.approx(0.390, abs=1e-3)]}
    assert report["turned"]["count"] == 6
    assert (report["turned_to_first"]["count"], report["turned_to_first"]["of"]) == (to_first, 6)
    assert report["first_place"] == {"count": 2 * to_first, "of": 12, "share": to_first / 6}
    assert report["other_ties"] == report["unreadable"] == 0


def test_a_report_on_pairs_by_hand() -> None:
    said = [
        ("A", "B"),
        ("B", "A"),
        ("B", "A"),
        ("A", "A"),
        ("B", "B"),
        ("B", "B"),
        ("tie", "tie"),
        ("A", "tie"),
        ("?", "B"),
    ]
    report = pairs_report([Pair(Reply(text=one), Reply(text=other)) for one, other in said])
    assert (report["decided"]["count"], report["turned"]["count"], report["other_ties"]) == (3, 3, 3)
    assert (report["turned_to_first"]["count"], report["turned_to_first"]["of"]) == (1, 3)
    assert (report["first_place"]["count"], report["first_place"]["of"]) == (6, 14)
    assert report["unreadable"] == 1
    assert [Pair(Reply(text=a), Reply(text=b)).share_of_first for a, b in said] == [1, 0, 0, *[0.5] * 6]
    shares = [Reply({"A": 0.9, "B": 0.1}, 0.5), Reply({"A": 0.2, "B": 0.8}, 0.3)]
    report = pairs_report([Pair(*shares)])
    assert (report["decided"]["count"], report["probability_of_answers"]) == (1, pytest.approx(0.4))
    assert pairs_report([])["turned"] == {"count": 0, "of": 0, "share": None, "interval": None}


def test_grades_rank_and_are_told(tmp_path: Path) -> None:
    with ChatServer(longer) as server:
        asked = (candidates("x" * 7, "x", "y" * 7), candidates("xx", "x" * 20, name="p1"))
        rankings, report = judged(server.judge, *asked, folder=tmp_path, judge_mode="grade")
    assert [r.tiers for r in rankings] == [(("r0", "r2"), ("r1",)), (("r1",), ("r0",))]
    assert rankings[0].scores == {"r0": 7, "r1": 1, "r2": 7}
    assert rankings[0].annotator == f"{server.judge} [grade]"
    assert (report["responses"], report["mean"], report["from_probabilities"]) == (5, pytest.approx(5.4), 0)
    assert report["tied_pairs"] == {"count": 1, "of": 4, "share": 0.25}
    (line,) = described(report)
    assert "5 responses graded, mean grade 5.40" in line
    assert grades_report([[Reply(text="?")]])["mean"] is None


def test_a_judge_told_something_else_is_another_annotator_and_asked_anew(tmp_path: Path) -> None:
    names = set()
    with ChatServer(longer) as server:
        for text in (
            None,
            "{prompt} [Response]\n{response_a}\n[End [Response]\n{response_b}\n[End",
            "2 {prompt} {response_a} {response_b}",
        ):
            if text is not None:
                (tmp_path / "judge.txt").write_text(text)
            options = {"judge_prompt": str(tmp_path / "judge.txt")} if text is not None else {}
            for _ in range(2):
                before = len(server.requests)
                judge = load_judge(server.judge, CollectionSettings(**options), CPU, seed=0)
                if text is None or text[0] != "2":
                    judge.rank([candidates("x", "xx")], tmp_path)
            assert len(server.requests) == before  # the second time nothing is asked
            names.add(judge.name)
    assert len(names) == 3
    assert all(name.startswith(server.judge) for name in names)
    assert len(server.requests) == 4


def test_a_model_on_this_machine_judges_by_the_same_way(
    model_folder: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"llm:{model_folder('llama')}"
    write_responses(tmp_path, candidates("good", "bad", "fine"), candidates("good", "bad", name="p1"))
    for options, annotator, count in ((), name, 8), (("--judge-mode", "grade"), f"{name} [grade]", 5):
        assert collect(tmp_path, "--judge", name, "--device", "cpu", *options) == 0
        report = json.loads((tmp_path / "judges.json").read_text())[annotator]
        assert 0 < report["probability_of_answers"] < 1
        lines = [json.loads(line) for line in (tmp_path / "judgments.jsonl").read_text().splitlines()]
        mode = report["mode"]
        assert sum(line["mode"] == mode for line in lines) == count
        assert all(sum(line["shares"].values()) == pytest.approx(1) for line in lines)
        rankings = read_rankings(tmp_path / "rankings.jsonl")
        assert sum(r.annotator == annotator for r in rankings) == 2
    assert "4 pairs in both orders" in capsys.readouterr().out


def test_the_order_of_arrival_changes_nothing(tmp_path: Path) -> None:
    asked = [candidates("x", "xx", "xxx", name=f"p{i}") for i in range(4)]

    def slowly(question: str) -> str:
        time.sleep(0.02 * (hash(question) % 3))
        return longer(question)

    results = []
    for reply, concurrency in ((longer, 1), (slowly, 8)):
        folder = tmp_path / str(concurrency)
        folder.mkdir()
        with ChatServer(reply) as server:
            rankings, report = judged(server.judge, *asked, folder=folder, judge_concurrency=concurrency)
        results.append(([r.tiers for r in rankings], [r.scores for r in rankings], {**report, "judge": ""}))
    assert results[0] == results[1]


@pytest.fixture
def asked() -> list[Candidates]:
    return [candidates("x" * (i % 3 + 1), "yy", "zzz", name=f"p{i}") for i in range(6)]  # 36 questions


def results(folder: Path) -> tuple[bytes, bytes, bytes]:
    return tuple((folder / name).read_bytes() for name in ("rankings.jsonl", "pairs.jsonl", "judges.json"))  # type: ignore


def test_a_server_that_dies_half_way_loses_nothing_and_the_same_command_asks_what_is_missing(
    asked: list[Candidates], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.chat_servers import completion

    left = [10]

    def answer(connection: Any) -> None:
        left[0] -= 1
        question = json.loads(server.requests[-1][2])["messages"][0]["content"]
        content = json.dumps(completion(longer(question))).encode()
        if left[0] >= 0:
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(content), content))
        else:
            connection.sendall(b"HTTP/1.1 500 Dead\r\nContent-Length: 0\r\n\r\n")

    folder, whole = tmp_path / "out", tmp_path / "whole"
    write_responses(folder, *asked)
    write_responses(whole, *asked)
    with ScriptedServer(answer) as server:
        judge = f"openai:{server.url.partition('/score')[0]}/v1#m"
        options = ("--judge", judge, "--judge-concurrency", "1", "--reward-wait", "0")
        assert collect(folder, *options) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line == f"error: judge={judge!r} answered 500 Dead."
        assert len((folder / "judgments.jsonl").read_text().splitlines()) == 10
        assert not (folder / "rankings.jsonl").exists()
        left[0] = 10**6
        before = [body for _, _, body in server.requests[:10]]
        assert collect(folder, *options) == 0
        after = [body for _, _, body in server.requests[11:]]
        assert len(after) == 26
        assert not set(before) & set(after)
        assert collect(folder, *options) == 0  # all is there
        assert len(server.requests) == 37
        assert collect(whole, *options) == 0
    assert results(folder) == results(whole)


def test_a_half_line_is_asked_again(tmp_path: Path) -> None:
    with ChatServer(longer) as server:
        before, _ = judged(server.judge, candidates("x", "xx"), folder=tmp_path)
        path = tmp_path / "judgments.jsonl"
        path.write_bytes(path.read_bytes()[:-20])  # as a crash in the middle of a line leaves it
        after, _ = judged(server.judge, candidates("x", "xx"), folder=tmp_path)
        assert len(server.requests) == 3
        assert len(path.read_text().splitlines()) == 2
    assert before == after


@pytest.mark.slow
def test_after_a_kill_only_what_is_missing_is_asked(asked: list[Candidates], tmp_path: Path) -> None:
    def reply(question: str) -> str:
        time.sleep(0.05)
        return longer(question)

    folder, whole = tmp_path / "out", tmp_path / "whole"
    write_responses(folder, *asked)
    write_responses(whole, *asked)
    with ChatServer(reply) as server:
        command = [sys.executable, str(ROOT / "scripts" / "collect_preferences.py"), "--judge", server.judge]
        command += ["--judge-concurrency", "2", "--output-dir"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen([*command, str(folder)], env=environment)
        deadline = time.monotonic() + 120
        journal = folder / "judgments.jsonl"
        while not (journal.is_file() and journal.read_bytes().count(b"\n") >= 8):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        time.sleep(0.2)
        with journal.open("ab") as file:  # as a crash in the middle of a line leaves it
            file.write(b'{"key": "half')
        kept = {json.loads(line)["key"] for line in journal.read_text().splitlines()[:-1]}
        assert 8 <= len(kept) < 36
        before = len(server.requests)
        subprocess.run([*command, str(folder)], env=environment, check=True, capture_output=True)
        assert len(server.requests) - before == 36 - len(kept)
        subprocess.run([*command, str(whole)], env=environment, check=True, capture_output=True)
    assert results(folder) == results(whole)


def test_the_key_is_in_no_file_and_on_no_line(
    asked: list[Candidates], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    replies: Iterator[str] = iter(["A", f"The key is {KEY}"] * 18)
    write_responses(tmp_path, *asked)
    with ChatServer(lambda question: next(replies)) as server:
        monkeypatch.setenv(KEYS_VARIABLE, f"{server.host}={KEY}")
        assert collect(tmp_path, "--judge", server.judge, "--judge-concurrency", "1") == 0
        assert set(server.keys) == {f"Bearer {KEY}"}
    texts = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert any("The key is [key]" in text for text in texts)
    captured = capsys.readouterr()
    assert not any(KEY in text for text in (*texts, captured.out, captured.err))
    with ScriptedServer((401, {}, f"wrong key {KEY}".encode())) as refusing:
        monkeypatch.setenv(KEYS_VARIABLE, f"127.0.0.1={KEY}")
        write_responses(tmp_path / "refused", *asked)
        judge = f"openai:{refusing.url.partition('/score')[0]}/v1#m"
        assert collect(tmp_path / "refused", "--judge", judge) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"error: judge={judge!r} answered 401 Unauthorized: wrong key [key]."
    assert not any(KEY in path.read_text() for path in (tmp_path / "refused").rglob("*") if path.is_file())


def test_a_judge_that_says_nothing_ends_with_one_line_and_a_few_odd_replies_are_ties(
    asked: list[Candidates], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_responses(tmp_path, *asked)
    with ChatServer(lambda question: "I cannot\njudge.") as server:
        assert collect(tmp_path, "--judge", server.judge, "--judge-concurrency", "1") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "8 of 8 replies have no answer that can be read (A or B); the last is 'I cannot judge.'" in line
    odd = candidates("xx", "x")
    with ChatServer(
        lambda question: "?" if "p0" in question and shown(question)[0] == "x" else longer(question)
    ) as server:
        rankings, report = judged(server.judge, odd, asked[1], folder=tmp_path)
    assert rankings[0].tiers == (("r0", "r1"),)
    assert (report["unreadable"], report["other_ties"]) == (1, 1)


def test_there_is_no_server(asked: list[Candidates], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_responses(tmp_path, *asked)
    judge = f"openai:http://127.0.0.1:{free_port()}/v1#m"
    assert collect(tmp_path, "--judge", judge, "--reward-wait", "0") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"error: judge={judge!r} cannot be reached (Connection refused)."


def test_agreement_with_a_file_of_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = [("xxx", "x"), ("xx", "x"), ("xxxx", "xx"), ("x", "zz"), ("xx", "yy")]  # 3 agree, 1 does not, 1 ties
    records = [{"prompt": "How?", "chosen": c, "rejected": r, "annotator": "ann"} for c, r in pairs]
    path = tmp_path / "people.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    folder = tmp_path / "out"
    with ChatServer(longer) as server:
        assert collect(folder, "--judge", server.judge, "--labels", str(path)) == 0
        assert len(server.requests) == 10
        labels = json.loads((folder / "judges.json").read_text())[server.judge]["labels"]
        assert (labels["pairs"], labels["agreed"], labels["disagreed"], labels["ties"]) == (5, 3, 1, 1)
        assert labels["agreement"]["share"] == pytest.approx(3 / 4)
        assert labels["agreement_ties_half"]["share"] == pytest.approx(3.5 / 5)
        assert (
            "on 5 pairs: 3 of 4 (75%; 95% interval 30% to 95%) of the decided agree, 1 ties" in capsys.readouterr().out
        )
        assert collect(folder, "--judge", server.judge, "--labels", str(path)) == 0  # again: nothing is asked
        assert len(server.requests) == 10
        path.write_text(path.read_text() + json.dumps({**records[0], "chosen": "other"}) + "\n")
        assert collect(folder, "--judge", server.judge, "--labels", str(path)) == 1
        assert "has other responses than labels" in capsys.readouterr().err
    (pair,) = read_rankings(path)[:1]
    assert labels_report([pair], [])["pairs"] == 0


def test_labels_of_any_judge_and_of_several_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = candidates("a.", "b..", "c")
    people = [Ranking(one, (("r1",), ("r0", "r2")), "ann"), Ranking(one, (("r2",), ("r1",), ("r0",)), "bob")]
    path = tmp_path / "people.jsonl"
    path.write_text("".join(json.dumps(r.to_json()) + "\n" for r in people))
    assert collect(tmp_path / "out", "--judge", "tests.conftest:count_dots", "--labels", str(path)) == 0
    labels = json.loads((tmp_path / "out" / "judges.json").read_text())["tests.conftest:count_dots"]["labels"]
    # the judge: b.., a., c. ann: b > a, b > c agree. bob: c > b, c > a disagree, b > a agrees
    assert (labels["agreed"], labels["disagreed"], labels["ties"]) == (3, 2, 0)
    path.write_text(path.read_text() + json.dumps(Ranking(candidates("x", "y"), (("r0",), ("r1",))).to_json()) + "\n")
    assert collect(tmp_path / "other", "--judge", "tests.conftest:count_dots", "--labels", str(path)) == 1
    assert "line 3: the id 'p0' stands for another prompt or other responses before" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("5", "a judgment is an object with a 'key'"),
        ('{"key": "k", "judge": "j", "mode": "pairwise"}', "has 'shares' or a 'text'"),
        ('{"key": "k", "judge": "j", "mode": "pairwise", "text": 5}', "has 'shares' or a 'text'"),
        ('{"key": "k", "judge": "j", "mode": "pairwise", "shares": {"A": 1}}', "a probability to each of A, B"),
        ('{"key": "k", "judge": "j", "mode": "pairwise", "shares": {"A": 2, "B": 0}}', "a probability to each of A, B"),
        ('{"key": "k", "judge": "j", "mode": "pairwise", "text": "A", "mass": 3}', "has 'shares' or a 'text'"),
        ("{", "JSON"),
    ],
)
def test_a_broken_judgment_is_named_with_file_and_line(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "judgments.jsonl"
    journal = Journal(path, "j", "pairwise", ("A", "B"))
    question = Question("Which \ud83d?", "p0", ("a", "b"))
    journal.add(question, Reply({"A": 0.25, "B": 0.75}, 0.5))
    again = Journal(path, "j", "pairwise", ("A", "B"))
    assert again.reply(question) == Reply({"A": 0.25, "B": 0.75}, 0.5)
    assert Journal(path, "other", "pairwise", ("A", "B")).reply(question) is None
    assert again.reply(Question("Which?", "p0", ("a", "b"))) is None
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=rf"judgments\.jsonl, line 2.*{message}"):
        Journal(path, "j", "pairwise", ("A", "B"))


def test_an_interruption_does_not_wait_for_the_threads(asked: list[Candidates], tmp_path: Path) -> None:
    end = threading.Event()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with ChatServer(lambda question: "A" if end.wait(20) else "B") as server:
            judge = load_judge(server.judge, CollectionSettings(), CPU, seed=0)
            threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
            started = time.monotonic()
            with pytest.raises(KeyboardInterrupt):
                judge.rank(asked, tmp_path)
            assert time.monotonic() - started < 10
            end.set()
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_score_of_a_run_that_fails_is_told_as_a_judges_error() -> None:
    judge = load_judge(f"openai:http://127.0.0.1:{free_port()}/v1#m", CollectionSettings(reward_wait=0), CPU, 0)
    with pytest.raises(RewardModelError, match="judge='openai:"):
        judge.rank([candidates("x", "y")])
