"""Conversations: what is kept, the page's handlers, the terminal, and the whole of it in a browser."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from agents.chat.log import TIE, ChatLog
from agents.chat.page import KL, PLAIN, VALUE, ChatPage, answer_html, transcript_html
from agents.chat.session import NotNowError, Session
from agents.chat.speaker import Answer, Token
from agents.chat.terminal import talk
from agents.cli import chat as script
from agents.preferences.records import read_rankings
from llm_env.default_task import DEFAULT_MODEL
from llm_env.text.prompts import Message
from tests.agents.preferences.test_page import free_port
from tests.browser import needs_browser, open_page
from tests.conftest import ROOT


class Parrot:
    """Answers with what was said, its name and how many messages there were."""

    has_template = True
    notes: Sequence[str] = ()

    def __init__(self, name: str) -> None:
        self.name = name

    def prompt(self, messages: Sequence[Message]) -> list[Message]:
        return list(messages)

    def answer(self, messages: Sequence[Message], seed: int) -> Answer:
        text = f"{self.name} {len(messages)} {messages[-1]['content']}"
        return Answer(self.name, text, True, (Token(text, 1.0, -2.0),))


def session(folder: Path, *names: str) -> Session:
    return Session([Parrot(name) for name in names], ChatLog(folder))  # type: ignore[misc]


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_all_is_on_the_disk_at_once_and_found_again(tmp_path: Path) -> None:
    s = session(tmp_path, "one")
    c = s.log.begin("ann")
    s.say(c, "Hello")
    s.thumb(c, 0, True)
    assert lines(tmp_path / "thumbs.jsonl") == [
        {
            "prompt": [{"role": "user", "content": "Hello"}],
            **{"completion": "one 1 Hello", "label": True, "annotator": "ann", "source": "one"},
        }
    ]
    s.thumb(c, 0, False)  # said otherwise: the later counts
    assert [r["label"] for r in lines(tmp_path / "thumbs.jsonl")] == [False]
    s.say(c, "More")
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"event": "thumb", "conv')  # a crash in the middle of a line
    (tmp_path / "thumbs.jsonl").unlink()  # and before the files that follow from the events
    again = session(tmp_path, "one")
    found = again.log.newest("ann")
    assert found == c
    assert found is not None
    assert [m["content"] for m in found.messages()] == ["Hello", "one 1 Hello", "More", "one 3 More"]
    assert lines(tmp_path / "conversations.jsonl")[0]["messages"] == found.messages()
    assert [r["label"] for r in lines(tmp_path / "thumbs.jsonl")] == [False]
    assert again.log.newest("bob") is None
    assert again.log.begin("bob").id == "c1"
    assert again.say(found, "Still").answers[0].text == "one 5 Still"


def test_two_answers_are_blind_and_the_better_one_goes_on(tmp_path: Path) -> None:
    s = session(tmp_path, "one", "two")
    c = s.log.begin("ann")
    orders = set()
    for i in range(8):
        s.say(c, f"Message {i}")
        with pytest.raises(NotNowError, match="which answer is better"):
            s.say(c, "More")
        orders.add(tuple(c.order(i)))
        s.choose(c, 0)  # the one on the left
        assert c.turns[i].better == c.order(i)[0]
        assert c.messages()[-1]["content"].startswith(("one", "two")[c.order(i)[0]])
    assert orders == {(0, 1), (1, 0)}
    s.say(c, "Tied")
    s.choose(c, TIE)
    assert c.messages()[-1]["content"].startswith("one")
    rankings = read_rankings(tmp_path / "rankings.jsonl")
    assert len(rankings) == 9
    for i, ranking in enumerate(rankings[:8]):
        best = ranking.candidates.response(ranking.tiers[0][0])
        assert best.source == ("one", "two")[c.order(i)[0]]
        assert ranking.candidates.prompt[-1]["content"] == f"Message {i}"  # type: ignore[index]
    assert rankings[8].tiers == (("r0", "r1"),)
    s.thumb(c, 1, False)
    assert lines(tmp_path / "thumbs.jsonl")[0]["source"] == ("one", "two")[c.order(8)[1]]


def test_what_cannot_be_done_is_said(tmp_path: Path) -> None:
    s = session(tmp_path, "one")
    c = s.log.begin("ann")
    for act in (lambda: s.say(c, " \n"), lambda: s.thumb(c, 0, True), lambda: s.choose(c, 0)):
        with pytest.raises(NotNowError):
            act()
    s.say(c, "Hi")
    with pytest.raises(NotNowError, match="no two answers"):
        s.choose(c, 0)
    assert len(lines(tmp_path / "events.jsonl")) == 1


@pytest.mark.parametrize(
    "line",
    [
        '{"event": "thumb", "conversation": "c7", "turn": 0, "answer": 0, "good": true}',
        '{"event": "thumb", "conversation": "c0", "turn": 0, "answer": 5, "good": true}',
        '{"event": "other", "conversation": "c0", "turn": 0}',
        '{"event": "answers", "conversation": "c0", "person": "a", "message": "x", "prompt": "", "answers": []}',
        '["no object"]',
        "no JSON",
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: str) -> None:
    s = session(tmp_path, "one")
    s.say(s.log.begin("ann"), "Hi")
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write(line + "\n")
    before = (tmp_path / "events.jsonl").read_bytes()
    with pytest.raises(ValueError, match=r"events.jsonl.* line 2"):
        ChatLog(tmp_path)
    assert (tmp_path / "events.jsonl").read_bytes() == before


NASTY = '<script>alert(1)</script> <img src=x onerror=alert(2)> *bold* "quotes" & more'


def test_texts_are_texts() -> None:
    answer = Answer("a", NASTY, True, (Token(NASTY, 2.0, -1.0), Token(" end", None, None)))
    for color in (PLAIN, KL, VALUE):
        shown = answer_html(answer, color)
        assert "<script" not in shown
        assert "<img" not in shown
        assert "&lt;script&gt;" in shown
    assert "background:rgb(246,204,159)" in answer_html(answer, KL)  # half of 4 nats: 255 (1 - 0.375) + 0.375 of orange
    assert 'title="KL 2.000 nats"' in answer_html(answer, KL)
    assert "background:rgb(199,219,246)" in answer_html(answer, VALUE)  # blue, a third of 3
    assert answer_html(answer, KL).count("<span") == 1  # what has no number has no color


def test_colors_do_not_tell_who_is_who(tmp_path: Path) -> None:
    log = ChatLog(tmp_path)
    c = log.begin("ann")
    log.add_answers(c, "Hi", "Hi", [Answer("a", "x", True, (Token("x", 1.0),)), Answer("b", "y", True, (Token("y"),))])
    assert "<span" not in transcript_html(c, KL)
    log.add_choice(c, 0, 0)
    assert "<span" in transcript_html(c, KL)
    log.add_answers(c, "Hi", "Hi", [Answer(n, "x", True, (Token("x", 1.0),)) for n in "ab"])
    assert transcript_html(c, KL).count("<span") == 3


@pytest.fixture
def pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ChatPage:
    """The page of two actors without gradio: an update is the dict of its arguments, and what stays as it is `None`."""
    gradio = SimpleNamespace(update=lambda **changes: changes, skip=lambda: None, Warning=lambda text: None)
    monkeypatch.setitem(sys.modules, "gradio", gradio)
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    return ChatPage(session(tmp_path, "one", "two"))


def test_the_page_does_what_its_buttons_say(pages: ChatPage) -> None:
    count = 4 + 2 * 2 + 3
    assert pages.start(" ", PLAIN) == [None] * (3 + count)
    begun = pages.start("ann", PLAIN)
    assert len(begun) == 3 + count
    name, shown, _, message, *buttons = pages.send("ann", None, NASTY, PLAIN)
    assert name == "c0"
    assert message == {"value": ""}
    assert all(b["visible"] for b in buttons)
    assert "one" in shown
    assert "<script" not in shown
    assert "which answer is better" in pages.send("ann", name, "More", PLAIN)[2]
    assert pages.send("ann", name, "More", PLAIN)[3] is None  # what was written stays
    assert pages.thumb("bob", name, PLAIN, 0, True)[0] is None  # somebody else's conversation
    assert "👍" in pages.thumb("ann", name, PLAIN, 1, True)[1]
    assert "★" in pages.choose("ann", name, PLAIN, 0)[1]
    assert "KL 1.000" in pages.recolor("ann", name, KL)[1]
    assert pages.new("ann", PLAIN)[:2] == [None, ""]
    assert "More" in pages.send("ann", None, "More", PLAIN)[1]
    assert list(pages.session.log.conversations) == ["c0", "c1"]
    lost = pages.send("", None, "Hello", PLAIN)  # the server was started again while the page was open
    assert "who you are" in lost[2]
    assert lost[3] is None
    assert list(pages.session.log.conversations) == ["c0", "c1"]


def test_in_the_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = iter(["Hello", "More", "/1", "/up2", "/down2", "/nosuch", "/new", "Again", "/quit"])
    console = Console(record=True, width=200)
    talk(session(tmp_path, "one", "two"), "ann", console, lambda prompt: next(said))
    text = console.export_text()
    assert "First say which answer is better" in text
    assert "'/nosuch' is no command" in text
    assert [len(c["messages"]) for c in lines(tmp_path / "conversations.jsonl")] == [2, 2]
    assert [t["label"] for t in lines(tmp_path / "thumbs.jsonl")] == [False]
    assert len(read_rankings(tmp_path / "rankings.jsonl")) == 1

    def ends(prompt: str) -> str:
        raise EOFError

    talk(session(tmp_path, "one", "two"), "ann", console, ends)
    assert "> Again" in console.export_text()  # the last conversation goes on


def test_the_command_in_a_terminal_with_the_embedded_actor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = iter(["How was the hotel?", "/up"])

    def read(prompt: str) -> str:
        try:
            return next(said)
        except StopIteration:
            raise KeyboardInterrupt from None

    options = ["--terminal", "--output-dir", str(tmp_path), "--device", "cpu", "--max-new-tokens", "8"]
    monkeypatch.setattr("agents.chat.terminal.talk", lambda s, p, c: talk(s, p, c, read))
    assert script.main(options) == 130
    assert "no chat template" in capsys.readouterr().out
    (thumb,) = lines(tmp_path / "thumbs.jsonl")
    assert thumb["prompt"] == "How was the hotel?"
    assert thumb["label"] is True


def start_server(folder: Path, port: int) -> subprocess.Popen[bytes]:
    words = [sys.executable, str(ROOT / "scripts" / "chat.py"), "--output-dir", str(folder), "--port", str(port)]
    words += ["--other", DEFAULT_MODEL, "--reference", DEFAULT_MODEL, "--device", "cpu", "--max-new-tokens", "12"]
    server = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL)
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


def begin(page: Any) -> None:
    page.locator("#begin").wait_for()
    page.locator("#name textarea, #name input").first.fill("ann")
    page.locator("#begin").click()
    page.locator("#message").wait_for()


@needs_browser
@pytest.mark.slow
def test_a_conversation_in_a_browser_survives_a_killed_server(tmp_path: Path) -> None:
    pytest.importorskip("gradio")
    port = free_port()
    server = start_server(tmp_path, port)
    nasty = '<img src=x onerror="document.title=1">'
    try:
        with open_page(f"http://127.0.0.1:{port}") as page:
            begin(page)
            page.locator("#message textarea").fill(f"How was the hotel? {nasty}")
            page.locator("#send").click()
            page.locator("#transcript .answer").nth(1).wait_for(timeout=60_000)
            assert nasty in page.locator("#transcript .user").inner_text()
            assert page.locator("#transcript img").count() == 0
            page.locator("#down1").click()
            page.get_by_text("Saved").first.wait_for()
            page.locator("#better0").click()
            page.get_by_text("★").first.wait_for()
            page.locator("#color label").filter(has_text="KL").click()
            page.locator("#transcript .token").first.wait_for()
            shown = page.locator("#transcript .answer").all_inner_texts()
            assert not page.errors
        server.send_signal(signal.SIGKILL)
        server.wait()
        server = start_server(tmp_path, port)
        with open_page(f"http://127.0.0.1:{port}") as page:
            begin(page)
            page.locator("#transcript .answer").nth(1).wait_for()
            page.locator("#color label").filter(has_text="KL").click()
            page.locator("#transcript .token").first.wait_for()
            assert page.locator("#transcript .answer").all_inner_texts() == shown
            page.locator("#message textarea").fill("And the food?")
            page.locator("#send").click()
            page.locator("#transcript .answer").nth(3).wait_for(timeout=60_000)
            page.screenshot(path=str(tmp_path / "page.png"))
    finally:
        server.kill()
        server.wait()
    assert len(lines(tmp_path / "conversations.jsonl")[0]["messages"]) == 4
    assert [t["label"] for t in lines(tmp_path / "thumbs.jsonl")] == [False]
    assert len(read_rankings(tmp_path / "rankings.jsonl")) == 1
