"""Columns and verifiers through whole commands: a run, its resumption, its evaluation, and the collection of preferences."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from agents import TextMetricsCallback, make_algorithm
from agents.cli import collect_preferences, evaluate_actor, train, train_reward_model
from agents.preferences.judge import RewardJudge
from agents.preferences.records import Candidates, Response, read_candidates, read_rankings
from agents.preferences.selection import pair_records
from agents.rollouts.scoring import greedy_scores
from agents.rollouts.segments import Segment
from llm_env.default_task import DEFAULT_MODEL
from llm_env.lm.names import LoadSettings
from tests.agents.small_runs import SMALL

WORDS = ["The", "room", "was", "clean", "and", "I"]
SEEN: list[list[Any]] = []


def starts(prompts: list[str], responses: list[str], word: list[str], **columns: list[Any]) -> list[float]:
    """Whether each response has its prompt's word."""
    assert all(p.startswith(f"{n}:") for p, n in zip(prompts, columns["n"], strict=True))
    SEEN.append(word)
    return [float(w in r) for w, r in zip(word, responses, strict=True)]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    records = [{"question": f"{i}: How was it?", "word": WORDS[i % 6], "n": i} for i in range(20)]
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_keeps_the_columns_and_its_parts(prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = ["--output-dir", str(out), "--model", DEFAULT_MODEL, "--prompts", str(prompts), "--device", "cpu"]
    command += ["--reward-model", f"{__name__}:starts", "verifier:length?most=3", "--reward-weights", "1", "0.5"]
    command += ["--gold", f"{__name__}:starts", "--n-envs", "8", "--max-new-tokens", "6", "--max-prompt-length", "16"]
    command += [
        "--lr-schedule",
        "constant",
        "--checkpoint-every",
        "1",
        "--eval-every",
        "1",
        "--n-eval",
        "2",
        "--n-samples",
        "2",
    ]
    assert train.main([*command, "--total-timesteps", "48"]) == 0
    split = [lines(out / name) for name in ("train_prompts.jsonl", "heldout_prompts.jsonl")]
    assert [len(side) for side in split] == [18, 2]
    for record in (record for side in split for record in side):
        number = int(record["prompt"].partition(":")[0])
        assert record == {"prompt": f"{number}: How was it?", "word": WORDS[number % 6], "n": number}
    assert train.main(["--resume", str(out), "--total-timesteps", "96"]) == 0
    with (out / "progress.csv").open() as file:
        rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    assert len(rows) == 2
    for row in rows:
        parts = row["rollout/reward/starts"] + 0.5 * row["rollout/reward/length"]
        assert row["rollout/rm_score"] == pytest.approx(parts)
        assert row["rollout/gold_score"] == pytest.approx(row["rollout/reward/starts"])
        assert row["eval/rm_score"] == pytest.approx(row["eval/reward/starts"] + 0.5 * row["eval/reward/length"])
    for sample in lines(out / "samples.jsonl"):
        assert sample["columns"] == {"word": WORDS[sample["columns"]["n"] % 6], "n": sample["columns"]["n"]}
        parts = sample["reward_parts"]
        assert parts["starts"] == float(sample["columns"]["word"] in sample["response"])
        assert sample["rm_score"] == parts["starts"] + 0.5 * parts["length"]
    assert evaluate_actor.main(["--actor", str(out / "actor"), "--device", "cpu", "--n-prompts", "2"]) == 0
    report = json.loads((out / "evaluation.json").read_text())
    assert report["parts"].keys() == {"starts", "length"}
    assert report["gold_score"] == report["parts"]["starts"][0]
    assert report["reference_gold_score"] == report["parts"]["starts"][1]


def test_preferences_keep_the_columns_for_judges_and_gold(
    prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "preferences"
    command = ["--output-dir", str(out), "--prompts", str(prompts), "--device", "cpu"]
    command += ["--n-responses", "2", "--max-new-tokens", "6", "--judge", f"{__name__}:starts"]
    assert collect_preferences.main(command) == 0
    candidates = read_candidates(out / "responses.jsonl")
    assert candidates
    for c in candidates:
        assert c.columns == {"word": WORDS[c.columns["n"] % 6], "n": c.columns["n"]}
    for ranking in read_rankings(out / "rankings.jsonl"):
        word = ranking.candidates.columns["word"]
        assert ranking.scores == {r.id: float(word in r.text) for r in ranking.candidates.responses}
    pairs = read_rankings(out / "pairs.jsonl") if (out / "pairs.jsonl").read_text() else []
    assert all(p.candidates.columns["word"] in WORDS for p in pairs)
    prompts.write_text('{"prompt": "1: A?", "word": "a", "n": 1}\n{"prompt": "2: B?", "n": 2}\n')
    capsys.readouterr()
    command[1] = str(tmp_path / "other")
    assert collect_preferences.main(command) == 1
    assert f"{prompts}, line 2: has no column 'word' (it has n), which judge=" in capsys.readouterr().err
    assert not (tmp_path / "other" / "responses.jsonl").exists()


def test_pairs_have_columns_and_a_gold_function_needs_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two = (Response("a", " The room."), Response("b", " I like it."))
    candidates = Candidates("p", "1: How?", two, {"word": "I", "n": 1})
    (ranking,) = RewardJudge(f"{__name__}:starts", LoadSettings("float32", "cpu")).rank([candidates])
    (pair,) = pair_records([ranking])
    assert (pair["chosen"], pair["columns"]) == (" I like it.", {"word": "I", "n": 1})
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps({**pair, "prompt": f"{i}: How?"}) + "\n" for i in range(20)))
    assert read_rankings(path)[0].candidates.columns == {"word": "I", "n": 1}
    path.write_text(
        "".join(json.dumps({"prompt": f"{i}: How?", "chosen": "a", "rejected": "b"}) + "\n" for i in range(20))
    )
    arguments = ["--output-dir", str(tmp_path / "out"), "--preferences", str(path), "--gold", f"{__name__}:starts"]
    assert train_reward_model.main(arguments) == 1
    assert "has no column 'word' (it has the prompt alone), which gold=" in capsys.readouterr().err


def test_the_same_question_with_another_answer_has_another_baseline() -> None:
    records = [{"prompt": "0: How was it?", "word": word, "n": 0} for word in (" ", "no such word")]
    env = {**SMALL, "model": DEFAULT_MODEL, "prompts": records, "reward_model": starts}
    model: Any = make_algorithm("remax", n_envs=4, seed=0, env_kwargs=env)
    _, callback = model._setup_learn(24, None)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, 6)
    task = model.env.task
    episodes = model.policy.respond(task, list(task.prompts.prompts), 0, True)
    assert [e.rm_score for e in episodes] == [1.0, 0.0]
    segments = [Segment(slot=0, context=[], episode=e) for e in episodes]
    assert greedy_scores(segments, model.policy, task)[0].tolist() == [1.0, 0.0]


def test_a_gold_function_in_python_gets_columns_too() -> None:
    records = [{"prompt": f"{n}: How was it?", "word": "I", "n": n} for n in range(4)]
    env = {**SMALL, "model": DEFAULT_MODEL, "prompts": records, "reward_model": "verifier:length?least=2"}
    callback = TextMetricsCallback(gold=starts)
    SEEN.clear()
    make_algorithm("ppo", n_envs=4, seed=0, env_kwargs=env).learn(24, callback=callback, log_interval=None)
    assert SEEN == [["I"] * 4]
    assert 0 <= callback.last["rollout/gold_score"] <= 1
