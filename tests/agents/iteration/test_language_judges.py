"""Rounds and runs whose judge or reward is a language model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agents.cli import iterate as script
from agents.preferences.records import read_rankings
from tests.agents.cli.test_train import run as train
from tests.agents.preferences.test_language_judge import longer, shown
from tests.chat_servers import ChatServer

SMALL = (
    *("--prompts-per-round", "6", "--n-responses", "2", "--n-eval", "4", "--max-new-tokens", "8", "--batch-size", "4"),
    *("--device", "cpu", "--rounds", "1"),
)


@pytest.fixture(autouse=True)
def quick_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda self, path, **options: Path(path).write_bytes(b""))


def test_a_round_compares_pairs_and_its_evaluation_grades(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ChatServer(longer) as server:
        options = ("--output-dir", str(tmp_path), *SMALL, "--judge", server.judge)
        assert script.main(options) == 0
        compared = [q for q in server.questions if len(shown(q)) == 2]
        assert len(compared) == 12
        assert len(server.questions) > len(compared)  # grades, of the evaluations
        before = len(server.requests)
        assert script.main(options) == 0
        assert len(server.requests) == before
    rankings = read_rankings(tmp_path / "round_1" / "rankings.jsonl")
    assert {r.annotator for r in rankings} == {server.judge}
    for ranking in rankings:
        lengths = {r.id: len(r.text) for r in ranking.candidates.responses}
        assert all(lengths[a.id] > lengths[b.id] for a, b, _ in ranking.pairs())
    report = json.loads((tmp_path / "round_1" / "judges.json").read_text())[server.judge]
    assert report["pairs"] == 6
    assert "6 pairs in both orders" in capsys.readouterr().out
    values: Any = json.loads((tmp_path / "rounds.json").read_text())[-1]["values"]["rm_score"]
    assert all(1 <= v <= 10 for v in values)


def test_the_instruction_of_grades_is_that_of_the_evaluation_too(tmp_path: Path) -> None:
    path = tmp_path / "judge.txt"
    path.write_text("Mine: {prompt}\n[Response]\n{response}\n[End]")
    with ChatServer(lambda question: str(1 + len(shown(question)[0]) % 10)) as server:
        options = ("--judge-mode", "grade", "--judge-prompt", str(path), "--judge-concurrency", "2")
        assert script.main(["--output-dir", str(tmp_path / "out"), *SMALL, "--judge", server.judge, *options]) == 0
        assert all(q.startswith("Mine: ") for q in server.questions)
    (tmp_path / "judge.txt").unlink()
    options = (*options, "--judge", "llm:./nosuch")
    assert script.main(["--output-dir", str(tmp_path / "other"), *SMALL, *options]) == 1
    assert not (tmp_path / "other").exists()


def test_a_run_learns_from_grades(model_folder: Callable[..., str], tmp_path: Path) -> None:
    judge = f"llm:{model_folder('llama')}"
    assert train(tmp_path / "local", "--reward-model", judge, iterations=2) == 0
    with ChatServer(longer) as server:
        assert train(tmp_path / "served", "--reward-model", server.judge, "--judge-concurrency", "3", iterations=2) == 0
        assert all(len(shown(q)) == 1 for q in server.questions)
        assert server.most_at_once <= 3
        assert train(tmp_path / "no", "--reward-model", server.judge, "--judge-prompt", "nosuch.txt") == 1
    samples = [json.loads(line) for line in (tmp_path / "served" / "samples.jsonl").read_text().splitlines()]
    assert samples
