"""Feedback in conversations: logs, rules, language models as classifiers, what comes out, and that KTO learns from it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from agents.cli import collect_feedback as script
from agents.cli import train_preference
from agents.conversations.classifiers import RuleClassifier
from agents.conversations.log import Turn, read_log
from agents.conversations.report import comparison
from agents.preferences.labeled import Labeled, is_labeled, read_labeled
from agents.preferences.records import write_jsonl
from llm_env.text.texts import read_texts
from tests.chat_servers import ChatServer

LIMITS = ("--reward-timeout", "20", "--reward-wait", "1")


def said(*texts: str, **more: Any) -> dict[str, Any]:
    """A conversation of texts, the user's first."""
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)], **more}


def marked(place: int, **field: Any) -> dict[str, Any]:
    """A conversation of three messages, one of which has a further field."""
    record = said("A", "B", "C")
    record["messages"][place] |= field
    return record


def written(path: Path, *records: Any) -> Path:
    write_jsonl(path, list(records))
    return path


def collect(log: Path, output: Path, *options: str) -> int:
    return script.main(["--log", str(log), "--output-dir", str(output), "--device", "cpu", *LIMITS, *options])


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_each_turn_behind_an_answer_is_found(tmp_path: Path) -> None:
    system = {"messages": [{"role": "system", "content": "Be kind."}, *said("Hi", "Hello", "Thanks")["messages"]]}
    log = written(tmp_path / "log.jsonl", said("A?", "B.", "C?", "D.", "E!", id="x"), said("A?", "B."), system)
    turns = read_log(log)
    assert [(t.conversation, t.place, t.answer, t.reply) for t in turns] == [
        ("x", 2, "B.", "C?"),
        ("x", 4, "D.", "E!"),
        ("line 3", 3, "Hello", "Thanks"),
    ]
    assert [m["content"] for m in turns[1].prompt] == ["A?", "B.", "C?"]
    assert turns[0].raw_prompt(plain=True) == "A?"
    assert turns[1].raw_prompt(plain=True) is None
    assert turns[2].raw_prompt(plain=True) is None
    assert turns[2].raw_prompt(plain=False) == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
    ]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "x"}, "a conversation is an object with a list of 'messages'"),
        ({"messages": [{"role": "user"}]}, "message 0 needs a 'content' text"),
        ({"messages": []}, "a prompt is a text or a list of messages"),
        (said("A", "B", "C", id="x"), "the id 'x' stands there a second time"),
        (marked(2, feedback="good"), "message 2: feedback='good' must be"),
        (marked(1, finished=1), "message 1: finished=1 must be"),
    ],
)
def test_broken_logs_are_refused_with_file_and_line(tmp_path: Path, record: Any, message: str) -> None:
    log = written(tmp_path / "log.jsonl", said("A", "B", "C", id="x"), record)
    with pytest.raises(ValueError, match=rf"log\.jsonl, line 2: .*{message}"):
        read_log(log)


@pytest.mark.parametrize(
    ("reply", "label"),
    [
        ("Thanks, that is exactly it.", "positive"),
        ("Not bad at all.", "positive"),
        ("Thank you, but this is not what I asked.", "negative"),
        ("I don’t like it.", "negative"),
        ("Far too long!", "negative"),
        ("Please make it shorter.", "negative"),
        ("This is wrong, thanks anyway.", "negative"),
        ("Was the soup good?", "none"),
        ("And how great is the view?", "none"),
        ("I went there in June.", "none"),
        ("", "none"),
    ],
)
def test_the_rules_that_are_shipped(reply: str, label: str) -> None:
    assert RuleClassifier().label(reply) == label


def test_rules_of_ones_own_in_order(tmp_path: Path) -> None:
    path = tmp_path / "rules.json"
    path.write_text('[{"label": "none", "pattern": "^ok"}, {"label": "positive", "pattern": "GUT"}]')
    rules = RuleClassifier(path)
    assert [rules.label(t) for t in ("sehr gut", "ok, gut", "naja")] == ["positive", "none", "none"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- label: good\n  pattern: x", r"rule 1: label='good' must be one of positive, negative, none"),
        (
            "- label: none\n  pattern: x\n- label: none\n  pattern: (",
            r"rule 2: pattern='\(' is not a regular expression",
        ),
        ("- pattern: x", "rule 1: a rule has 'label' and 'pattern'"),
        ("label: none", "must be a list of rules"),
        ("- [", "not valid YAML"),
    ],
)
def test_broken_rules_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"rules\.yaml.*{message}"):
        RuleClassifier(path)


LOG = (
    said("How was the hotel?", "Fine.", "Thanks!", id="a"),
    said("How was the zoo?", "Bad.", "That is wrong.", "Good.", "Perfect.", id="b"),
    said("How was the gym?", "Big.", "And the pool?", id="c"),
)


def test_texts_and_good_and_bad_responses_come_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert collect(written(tmp_path / "log.jsonl", *LOG), tmp_path / "out", "--plain-prompts", "--examples", "1") == 0
    assert [t.response for t in read_texts(tmp_path / "out" / "texts.jsonl")] == ["Fine."]
    labeled = read_labeled(tmp_path / "out" / "kto.jsonl")
    assert labeled == [Labeled("How was the hotel?", "Fine.", True), Labeled("How was the zoo?", "Bad.", False)]
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["counts"] == {"positive": 2, "negative": 1, "none": 1}
    assert report["without_plain_prompt"] == 1
    assert [len(e) for e in report["examples"].values()] == [1, 1, 1]
    assert "2 are content with it, 1 are not, 1 say neither" in capsys.readouterr().out
    assert "  - That is wrong." in (tmp_path / "out" / "report.md").read_text()
    # whole conversations, for models with a chat template
    assert collect(tmp_path / "log.jsonl", tmp_path / "chat") == 0
    labeled = read_labeled(tmp_path / "chat" / "kto.jsonl")
    assert [(one.response, one.is_good) for one in labeled] == [("Fine.", True), ("Bad.", False), ("Good.", True)]
    assert [m["content"] for m in labeled[2].prompt] == ["How was the zoo?", "Bad.", "That is wrong."]
    assert [f["feedback"] for f in lines(tmp_path / "chat" / "feedback.jsonl")] == [
        "positive",
        "negative",
        "positive",
        "none",
    ]


def letter(question: str) -> str:
    reply = re.search(r"\[The user's message\]\n(.*)\n\[End of the user's message\]", question)[1]
    return {"Thanks!": "A", "Perfect.": "The letter is A.", "That is wrong.": "B"}.get(reply, "C")


def test_a_language_model_classifies_and_is_asked_once(tmp_path: Path) -> None:
    log = written(tmp_path / "log.jsonl", *LOG)
    with ChatServer(letter) as server:
        assert collect(log, tmp_path / "out", "--classifier", server.judge) == 0
        assert len(server.requests) == 4
        assert "[Prompt]\nuser: How was the zoo?\n\nassistant: Bad.\n\nuser: That is wrong.\n" in "".join(
            server.questions
        )
        assert collect(log, tmp_path / "out", "--classifier", server.judge) == 0
        assert len(server.requests) == 4
    feedback = lines(tmp_path / "out" / "feedback.jsonl")
    assert [f["feedback"] for f in feedback] == ["positive", "negative", "positive", "none"]
    assert feedback[0]["by"] == server.judge


def test_a_classifier_that_dies_keeps_what_it_said_and_rubbish_is_counted(tmp_path: Path, capsys: Any) -> None:
    log = written(tmp_path / "log.jsonl", *LOG)
    with ChatServer(lambda q: {"no": "choices"} if "the gym" in q else letter(q)) as server:
        options = ("--classifier", server.judge, "--judge-concurrency", "1")
        assert collect(log, tmp_path / "out", *options) == 1
    assert len(lines(tmp_path / "out" / "judgments.jsonl")) == 3
    assert not (tmp_path / "out" / "kto.jsonl").exists()
    assert 'must answer {"choices"' in capsys.readouterr().err
    with ChatServer(lambda q: "I would rather not say." if "the gym" in q else letter(q)) as server:
        assert collect(log, tmp_path / "other", "--classifier", server.judge) == 0
    assert json.loads((tmp_path / "other" / "report.json").read_text())["unreadable"] == 1
    assert "1 replies of the classifier could not be read" in capsys.readouterr().out


def test_precision_and_recall_by_hand() -> None:
    pairs = [
        ("positive", "positive"),
        ("positive", "none"),
        ("negative", "positive"),
        ("none", "none"),
        ("negative", "negative"),
    ]
    report = comparison(pairs)
    positive = report["by_class"]["positive"]
    assert (positive["precision"]["count"], positive["precision"]["of"]) == (1, 2)
    assert (positive["recall"]["count"], positive["recall"]["of"]) == (1, 2)
    assert report["by_class"]["negative"]["precision"]["share"] == 1.0
    assert report["by_class"]["negative"]["recall"]["share"] == 0.5
    assert report["right"]["count"] == 3
    assert report["confusion"]["negative"] == {"positive": 1, "negative": 1, "none": 0}


def test_truth_in_the_log_is_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, missed = said("A?", "B.", "Thanks!"), marked(2, feedback="negative")
    found["messages"][2]["feedback"] = "positive"
    assert collect(written(tmp_path / "log.jsonl", found, missed), tmp_path / "out") == 0
    out = capsys.readouterr().out
    assert "positive: precision 100.0%" in out
    assert "negative: precision unknown (0 of 0), recall 0.0%" in out


def train(folder: Path, records: Any, *options: str) -> int:
    path = written(folder / "kto.jsonl", *records)
    common = ("--preferences", str(path), "--output-dir", str(folder / "out"), "--device", "cpu", "--n-samples", "0")
    return train_preference.main([*common, *options])


def labeled_records(count: int) -> list[dict[str, Any]]:
    good = {"completion": " The room was lovely. Thank you.", "label": True}
    bad = {"response": " The room was awful.", "label": False}
    return [{"prompt": f"How was hotel {i}?", **(good if i % 2 else bad)} for i in range(count)]


def test_kto_learns_from_single_responses(tmp_path: Path) -> None:
    assert is_labeled(written(tmp_path / "kto.jsonl", *labeled_records(2)))
    assert (
        train(
            tmp_path, labeled_records(24), "--loss", "kto", "--epochs", "4", "--batch-size", "8", "--evaluations", "2"
        )
        == 0
    )
    report = json.loads((tmp_path / "out" / "preference.json").read_text())
    assert (report["responses"], report["good_responses"], report["heldout_responses"]) == (22, 12, 2)
    rewards = [e for e in report["log"] if "rewards/chosen" in e and "rewards/rejected" in e]
    assert rewards[-1]["rewards/chosen"] > rewards[-1]["rewards/rejected"]


@pytest.mark.parametrize(
    ("record", "options", "message"),
    [
        ({"label": "maybe"}, ("--loss", "kto"), "line 3: label='maybe' must be true (good) or false (bad)"),
        ({"completion": " "}, ("--loss", "kto"), "line 3: 'completion' must be a text"),
        ({"finished": 1}, ("--loss", "kto"), "line 3: finished=1 must be"),
        ({}, ("--loss", "dpo"), "loss='dpo' learns from pairs. Take --loss kto"),
    ],
)
def test_labels_that_cannot_be_learned_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], record: Any, options: tuple[str, ...], message: str
) -> None:
    whole = {"prompt": "C?", "completion": " Yes.", "label": True}
    assert train(tmp_path, [*labeled_records(2), {**whole, **record}], *options) == 1
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_a_turn_has_a_name() -> None:
    assert Turn("c", 2, (), "a", "b").key == "c 2"


@pytest.mark.slow
def test_kto_on_what_users_say_raises_the_gold_score(tmp_path: Path) -> None:
    """The lab's experiment with one seed and fewer passes; three seeds stand in docs/feedback.md."""
    from learn_from_chats import Args, learn

    numbers = learn(Args(output_dir=tmp_path, epochs=4.0), seed=0)
    compared = numbers["report"]["compared"]["by_class"]
    for label in ("positive", "negative"):
        assert compared[label]["precision"]["share"] > 0.9
        assert compared[label]["recall"]["share"] > 0.5
    start, after = numbers["gold"]["start"], numbers["gold"]["KTO, rules"]["gold"]
    assert after["mean"] - after["half_width"] > start["mean"] + start["half_width"]
