"""Judges behind the OpenAI protocol: what is asked, what is taken for a reply, and what is waited for."""

from __future__ import annotations

import json
import math
import threading
import time
from typing import Any

import pytest

from llm_env.lm.names import LoadSettings
from llm_env.reward.endpoint import KEYS_VARIABLE
from llm_env.reward.judges.names import JudgeOptions
from llm_env.reward.judges.reading import Reply, grade_of, verdict_of
from llm_env.reward.judges.served import ServedJudge, grade_shares
from llm_env.reward.judges.side_by_side import side_by_side
from llm_env.reward.limits import CallLimits
from llm_env.reward.models import load_text_reward
from llm_env.reward.scores import RewardModelError
from llm_env.settings import TaskSettings
from tests.chat_servers import ChatServer, completion, said
from tests.reward_servers import ScriptedServer, drips, free_port

LETTERS = ("A", "B")
GRADES = tuple(str(g) for g in range(1, 11))
KEY = "sk-s3cret/key+1"


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_env.reward.limits.FIRST_PAUSE", 0.001)


def judge_at(server: ScriptedServer, wait: float = 60, timeout: float = 60) -> ServedJudge:
    return ServedJudge(f"openai:{server.url.partition('/score')[0]}/v1#m", "judge", CallLimits(timeout, wait), 1)


def asked(judge: ServedJudge, options: tuple[str, ...] = LETTERS) -> Reply:
    ((_, reply),) = judge.replies(["Which?"], options)
    return reply


def tokens(*places: tuple[str, dict[str, float]]) -> dict[str, Any]:
    """A reply's logprobs: at each place the token that was written, and probabilities."""
    return {
        "content": [
            {
                "token": token,
                "logprob": math.log(top.get(token, 1e-9)),
                "top_logprobs": [{"token": t, "logprob": math.log(p), "bytes": None} for t, p in top.items()],
            }
            for token, top in places
        ]
    }


def test_the_question_is_a_users_message_at_temperature_0(monkeypatch: pytest.MonkeyPatch) -> None:
    with ChatServer(lambda question: "B" if "prüfen" in question else "?") as server:
        monkeypatch.setenv(KEYS_VARIABLE, f"{server.host}={KEY}")
        judge = ServedJudge(server.judge)
        ((_, reply),) = judge.replies(["Bitte prüfen \ud83d"], LETTERS)
    assert verdict_of(reply) == "B"
    (request,) = server.requests
    assert request["model"] == "tiny"
    assert request["messages"] == [{"role": "user", "content": "Bitte prüfen \ud83d"}]
    assert request["temperature"] == 0
    assert "logprobs" not in request  # letters are read from the text
    assert server.keys == [f"Bearer {KEY}"]


def test_grades_are_expected_values_over_the_probabilities_that_the_server_gives() -> None:
    logprobs = tokens((" 8", {" 8": 0.5, "8": 0.1, "9": 0.2, "7": 0.1, "Eight": 0.1}), ("", {}))
    with ChatServer(lambda question: completion(" 8", logprobs)) as server:
        ((_, reply),) = ServedJudge(server.judge).replies(["How good?"], GRADES)
    assert (server.requests[0]["logprobs"], server.requests[0]["top_logprobs"]) == (True, 20)
    assert grade_of(reply) == pytest.approx((8 * 0.6 + 9 * 0.2 + 7 * 0.1) / 0.9)
    assert reply.mass == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("logprobs", "grade"),
    [
        (tokens(("10", {"10": 0.5, "1": 0.3, "9": 0.2})), 0.5 * 10 + 0.3 * 1 + 0.2 * 9),  # "10" is a token
        (tokens(("1", {"1": 0.8, "9": 0.2}), ("0", {"0": 0.75, "": 0.25})), 0.8 * (0.75 * 10 + 0.25) + 0.2 * 9),
        (tokens(("\n", {"\n": 1.0}), ("7", {"7": 0.5, "6": 0.5})), 6.5),
        (tokens(("9", {"9": 0.995, "1": 0.005})), 0.995 * 9 + 0.005),
        (tokens(("9", {"9": 0.6, "1": 0.4})), None),  # a "1" of which it is not known what would follow
        (tokens(("1", {"1": 0.6, "9": 0.4})), None),
        (tokens(("Grade", {"Grade": 0.9, "7": 0.1}), ("7", {"7": 1.0})), None),
        (tokens(("7", {})), None),
        ({"content": None}, None),
        ({"content": [5, {"token": "7", "top_logprobs": [5, {"token": "7", "logprob": "x"}]}]}, None),
        (None, None),
        ("7", None),
    ],
)
def test_where_probabilities_do_not_tell_the_written_number_counts(logprobs: Any, grade: float | None) -> None:
    found = grade_shares(logprobs, GRADES)
    assert (found is None) == (grade is None)
    if found is not None:
        assert sum(int(g) * share for g, share in found[0].items()) == pytest.approx(grade)
    with ScriptedServer(said("Grade: 4", logprobs)) as server:
        assert grade_of(asked(judge_at(server), GRADES)) == pytest.approx(4 if grade is None else grade)


def test_a_server_that_refuses_probabilities_is_asked_without_from_then_on() -> None:
    refusal = (400, {}, json.dumps({"error": {"message": "logprobs are not supported"}}).encode())
    with ScriptedServer(refusal, said("7"), said("6")) as server:
        judge = judge_at(server)
        assert grade_of(asked(judge, GRADES)) == 7
        assert grade_of(asked(judge, GRADES)) == 6
        assert ["logprobs" in json.loads(body) for _, _, body in server.requests] == [True, False, False]


def test_thoughts_are_not_the_reply_and_nothing_is_no_verdict() -> None:
    thoughts = (said("<think>\nA?\n</think>\n\nB"), said("A\n</think>\n\nB"))
    with ScriptedServer(*thoughts, said(None), said("I cannot.")) as server:
        judge = judge_at(server)
        assert verdict_of(asked(judge)) == "B"
        assert verdict_of(asked(judge)) == "B"
        assert verdict_of(asked(judge)) is None
        assert verdict_of(asked(judge)) is None


def body(values: Any) -> tuple[int, dict[str, str], bytes]:
    return 200, {}, json.dumps(values).encode()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((200, {}, b"<html>\x1b[31m\nhi"), r".*is not JSON: <html>\\x1b\[31m hi$"),
        ((200, {}, b""), ".*is not JSON: $"),
        (body([1]), r'must answer \{"choices"'),
        (body({"choices": []}), r'must answer \{"choices": .* it answered \{"choices": \[\]\}'),
        (body({"choices": [{"message": {"content": 5}}]}), r'must answer \{"choices"'),
        (body({"choices": [{"text": "A"}]}), r'must answer \{"choices"'),
        ((401, {}, b'{"error": {"message": "bad\\nkey sk-s3cret\\/key+1"}}'), r"answered 401 Unauth.*: bad key \[key\]\."),
        ((401, {}, b"x" * 110 + b"sk-s3cret/key+1"), r"answered 401 Unauthorized: x+\[key\]"),
        ((401, {}, b"Bearer sk-s3cret/key+1?"), r"answered 401 Unauthorized: Bearer \[key\]\?"),
        ((404, {}, b'{"error": "model m not found"}'), "answered 404 Not Found: model m not found"),
        ((302, {"Location": "http://x/?k=sk-s3cret/key+1"}, b""), r"answered 302 Found, a redirect to http://x/\?k=\[key\]\."),
        ((200, {}, b'"sk-s3cret/key+1"'), r'must answer .* it answered "\[key\]"'),
    ],
)  # fmt: skip
def test_an_answer_of_something_else_is_one_line_at_once_without_the_key(
    answer: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEYS_VARIABLE, f"127.0.0.1={KEY}")
    with (
        ScriptedServer(answer) as server,
        pytest.raises(RewardModelError, match=f"^judge='openai:http://127.*#m' {message}") as caught,
    ):
        asked(judge_at(server))
    assert len(server.requests) == 1
    assert server.requests[0][1]["Authorization"] == f"Bearer {KEY}"
    for error in (caught.value, caught.value.__cause__):
        assert KEY not in str(error)
        assert "\n" not in str(error)


def test_overload_and_outage_are_waited_for_with_one_line_each(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    slept: list[float] = []
    monkeypatch.setattr("llm_env.reward.limits.time.sleep", slept.append)
    monkeypatch.setenv(KEYS_VARIABLE, f"127.0.0.1={KEY}")
    overload = (429, {"Retry-After": "7"}, f'{{"error": {{"message": "slow down, {KEY}"}}}}'.encode())
    with ScriptedServer(overload, None, said("A")) as server:
        assert verdict_of(asked(judge_at(server))) == "A"
    assert slept[0] == 7
    first, second = (r.getMessage() for r in caplog.records)
    assert "answered 429 Too Many Requests: slow down, [key]. It is asked again for up to 60 s" in first
    assert second.endswith("going on.")
    with pytest.raises(
        RewardModelError, match=r"cannot be reached \(Connection refused\)\. It was asked again for 0\.01 s"
    ):
        list(
            ServedJudge(f"openai:http://127.0.0.1:{free_port()}/v1#m", limits=CallLimits(None, 0.01)).replies(
                ["?"], LETTERS
            )
        )
    end = threading.Event()
    with ScriptedServer(lambda connection: end.wait(60)) as server:
        with pytest.raises(RewardModelError, match=r"did not answer within 0\.05 s \(reward_timeout\)"):
            asked(judge_at(server, wait=0, timeout=0.05))
        end.set()


def test_a_server_that_drips_is_given_up_in_threads_too() -> None:
    with ScriptedServer(drips) as server, pytest.raises(RewardModelError, match=r"did not answer within 0\.1 s"):
        asked(judge_at(server, wait=0, timeout=0.1))


def test_requests_go_side_by_side_up_to_a_number_and_replies_keep_their_places() -> None:
    def reply(question: str) -> str:
        time.sleep(0.02 if int(question) % 3 else 0.05)
        return "A" if int(question) % 2 else "B"

    with ChatServer(reply) as server:
        judge = ServedJudge(server.judge, concurrency=4)
        replies = dict(judge.replies([str(i) for i in range(24)], LETTERS))
    assert [verdict_of(replies[i]) for i in range(24)] == ["B", "A"] * 12
    assert 2 <= server.most_at_once <= 4


def test_many_threads_say_once_that_they_wait(caplog: pytest.LogCaptureFixture) -> None:
    judge = ServedJudge(f"openai:http://127.0.0.1:{free_port()}/v1#m", limits=CallLimits(None, 0.05), concurrency=8)
    with pytest.raises(RewardModelError, match="cannot be reached"):
        list(judge.replies([str(i) for i in range(40)], LETTERS))
    (line,) = (r.getMessage() for r in caplog.records)
    assert line.endswith("It is asked again for up to 0.05 s …")


def test_what_the_others_brought_is_not_lost_when_one_fails() -> None:
    started = threading.Barrier(3)

    def call(item: int, stop: threading.Event) -> int:
        started.wait(10)
        if item == 1:
            raise KeyError("broken")
        stop.wait(10)  # the failure comes first
        time.sleep(0.05)
        return item

    iterator = side_by_side(call, list(range(9)), 3, patience=10)
    assert sorted((next(iterator), next(iterator))) == [(0, 0), (2, 2)]
    with pytest.raises(KeyError, match="broken"):
        next(iterator)


def test_a_reader_who_leaves_stops_the_rest() -> None:
    called: list[int] = []

    def call(item: int, stop: threading.Event) -> int:
        called.append(item)
        time.sleep(0.01)
        return item

    iterator = side_by_side(call, list(range(500)), 2, patience=1)
    next(iterator)
    iterator.close()  # type: ignore[attr-defined]
    time.sleep(0.1)
    assert len(called) < 10


def test_grades_reward_and_what_cannot_be_read_counts_as_the_lowest(
    caplog: pytest.LogCaptureFixture, tmp_path: Any
) -> None:
    path = tmp_path / "judge.txt"
    path.write_text("{prompt}|{response}")

    def reply(question: str) -> str:
        return {"P|good": "9", "P|fair": "6"}.get(question, "who knows")

    with ChatServer(reply) as server:
        reward = load_text_reward(server.judge, "reward_model", judging=JudgeOptions(str(path), 2))
        assert reward.score_texts(["P"] * 4, ["good", "odd", "fair", "good"]) == [9, 1, 6, 9]
        assert len(server.requests) == 3  # the same question once
        (line,) = (r.getMessage() for r in caplog.records)
        assert line.startswith(f"reward_model={server.judge!r}: 1 of 3 replies have no grade")
        with pytest.raises(
            RewardModelError, match=r"have no answer that can be read \(a grade from 1 to 10\).*'who know"
        ):
            reward.score_texts(["P"] * 12, [str(i) for i in range(12)])


def test_names_and_files_are_checked_before_anything_is_loaded() -> None:
    for reward in ("openai:http://h/v1", [["llm:", 1.0]]):
        with pytest.raises(ValueError, match=r"^reward_model=.* names no model"):
            TaskSettings(reward_model=reward)
    with pytest.raises(ValueError, match="judge_concurrency=0 must be a whole number, at least 1"):
        TaskSettings(judge_concurrency=0)
    with pytest.raises(FileNotFoundError, match="judge_prompt='nosuch'"):
        load_text_reward("openai:http://h/v1#m", judging=JudgeOptions("nosuch"))
    with pytest.raises(FileNotFoundError, match=r"reward_model='\./nosuch': there is no such folder"):
        load_text_reward("llm:./nosuch", load=LoadSettings("float32", "cpu"))
