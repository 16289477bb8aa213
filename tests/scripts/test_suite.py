"""The suite of tasks for defaults: regrets, its candidates, and runs at the smallest size."""

from __future__ import annotations

import json
import subprocess
import venv
from pathlib import Path
from typing import Any

import pytest

import build_film_sentences
import suite
from agents.algorithms.table import checked_settings
from comparison.jobs import peer_files
from comparison.regret import below_reference, cell_table, draw, frontier, regret_table, regrets
from comparison.rewards import twenty_words
from comparison.tasks import ComparedTask
from llm_env.default_task import DEFAULT_MODEL
from peer_environment import peer_python


def row(task: str, settings: str, score: float, kl: float, kl_coef: float = 0.1, seed: int = 0) -> dict[str, Any]:
    common = {"tokens": 20_000, "kl_coef": kl_coef, "seed": seed, "gold_score": 0.0}
    return {"task": task, "settings": settings, "rm_score": score, "kl": kl, **common}


ROWS = [
    row("a", "reference", 0.5, 0.0),
    row("b", "reference", -1.0, 0.0),
    row("a", "plain", 2.0, 5.0, seed=0),  # J 1.5
    row("a", "plain", 1.0, 10.0, seed=1),  # J 0.0: below the reference
    row("a", "other", 1.0, 0.0),  # J 1.0
    row("a", "other", 1.0, 1.0, kl_coef=0.4),  # another cell, in which it is alone
    row("b", "plain", 0.0, 0.0),
    row("b", "other", -0.5, 0.0),
]


def test_regret_is_how_far_the_mean_is_below_the_best_of_the_cell() -> None:
    got = regrets(ROWS)
    first, second, alone = ("a", 20_000, 0.1), ("b", 20_000, 0.1), ("a", 20_000, 0.4)
    assert got["plain"] == pytest.approx({first: 0.25, second: 0.0})
    assert got["other"] == pytest.approx({first: 0.0, second: 0.5, alone: 0.0})
    assert below_reference(ROWS) == {"plain": 1, "other": 0}


def test_tables_and_picture(tmp_path: Path) -> None:
    lines = regret_table(ROWS).splitlines()
    assert lines[0] == "| settings | cells | runs | mean regret | worst | where | a | b | runs below the reference |"
    assert lines[2:] == [
        "| plain | 2 | 3 | 0.125 | 0.25 | a, 20,000 tokens, β 0.1 | 0.250 | 0.000 | 1 |",
        "| other | 3 | 3 | 0.167 | 0.50 | b, 20,000 tokens, β 0.1 | 0.000 | 0.500 | 0 |",
    ]
    assert cell_table(ROWS, ("plain", "other")).splitlines()[2:] == [
        "| a, 20,000 tokens, β 0.1 | 0.50 | 0.75 (0.00 to 1.50) | **1.00** |",
        "| a, 20,000 tokens, β 0.4 | 0.50 |  | **0.60** |",
        "| b, 20,000 tokens, β 0.1 | -1.00 | **0.00** | -0.50 |",
    ]
    draw([*ROWS, {**row("b", "plain", 1.0, 2.0), "tokens": 100_000}], tmp_path / "suite.png")
    assert (tmp_path / "suite.png").stat().st_size > 10_000


def test_a_frontier_has_a_point_for_each_beta() -> None:
    plain = [r for r in ROWS if r["task"] == "a" and r["settings"] == "plain"]
    assert frontier([*plain, row("a", "plain", 0.5, 1.0, kl_coef=0.4)]) == [(1.0, 0.5), (7.5, 1.5)]


def test_the_candidates_are_settings_of_their_algorithms() -> None:
    candidates = suite.read_candidates(suite.Args().candidates, ())
    assert "defaults" in candidates
    for name, settings in candidates.items():
        own = {k: v for k, v in settings.items() if k not in ("algo", "n_envs", "env_kwargs", "rollout_buffer_kwargs")}
        assert checked_settings(settings["algo"], own) == own, name
    for task in suite.Args().tasks:
        assert suite.read_task(task).max_new_tokens <= 32


@pytest.mark.parametrize(
    ("text", "only", "said"),
    [
        ("plain: {n_envs: 8}", (), "'plain' must be a table with `algo`"),
        ("reference: {algo: ppo}", (), "'reference' is the name of what is not trained"),
        ("plain: {algo: ppo}", ("plane",), "'plane' is not in"),
    ],
)
def test_bad_candidates_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, only: tuple[str, ...], said: str
) -> None:
    (tmp_path / "c.yaml").write_text(text)
    assert suite.main(suite.Args(tmp_path / "out", tmp_path / "c.yaml", only)) == 1
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_peers_train_on_the_files_of_a_task(tmp_path: Path) -> None:
    files = peer_files(suite.read_task("film"))
    assert {name: Path(path).name for name, path in files.items()} == {
        "actor": "actor", "reward_model": "reward_model", "prompts": "prompts.jsonl",
    }  # fmt: skip
    assert peer_files(suite.read_task("embedded"))["actor"] == str(Path(DEFAULT_MODEL).resolve())
    with pytest.raises(ValueError, match="twenty_words': peers are trained on reward models alone"):
        peer_files(suite.read_task("count"))
    with pytest.raises(ValueError, match=r"prompts='p\.jsonl': a peer trains on all of a file; give eval_prompts"):
        peer_files(ComparedTask(prompts="p.jsonl"))


def test_a_peers_environment_has_its_own_release_and_is_made_to_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installs: list[list[str]] = []

    def run(command: list[str], **_: Any) -> None:
        installs.append(command)
        if len(installs) == 2:
            raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(venv, "create", lambda folder, **_: folder.mkdir(exist_ok=True))
    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(subprocess.CalledProcessError):
        peer_python(tmp_path / "env", "1.12.0")
    for _ in range(2):  # it was cut off, and is made again; then it is there
        assert peer_python(tmp_path / "env", "1.12.0") == tmp_path / "env" / "bin" / "python"
        assert len(installs) == 4
    assert installs[-2][-1].startswith("torch==2.")
    assert "+" not in installs[-2][-1]
    assert installs[-1][-2] == "trl==1.12.0"


def test_a_count_is_scored() -> None:
    assert twenty_words(["x"] * 3, ["word " * 20, "word " * 14, "word " * 26]) == [1.0, 0.0, 0.0]


def test_runs_are_made_once_and_keep_what_is_logged_of_updates(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.yaml").write_text("as-it-is: {algo: ppo, n_envs: 8}\nrloo: {algo: rloo, n_envs: 8}\n")
    args = suite.Args(
        tmp_path / "out", tmp_path / "c.yaml", tasks=("count",), tokens=(500,), kl_coefs=(0.05,), n_prompts=16, jobs=1
    )
    assert suite.main(args) == 0
    assert capsys.readouterr().out.count(" to go)") == 3
    rows = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {(r["task"], r["settings"]) for r in rows} == {("count", name) for name in ("as-it-is", "rloo", "reference")}
    run = json.loads((tmp_path / "out" / "runs" / "count-500-beta0.05-as-it-is-seed0.json").read_text())
    assert len(run["training"]) == len(run["curve"]) > 1
    assert {"explained_variance", "approx_kl", "clip_fraction", "value_loss"} <= set(run["training"][-1])
    table = (tmp_path / "out" / "table.md").read_text()
    assert table == regret_table(rows) + "\n" + cell_table(rows, ("as-it-is", "rloo"))
    # Nothing is run again; a candidate of the same name with other settings is refused.
    assert suite.main(args) == 0
    assert " to go)" not in capsys.readouterr().out
    (tmp_path / "c.yaml").write_text("as-it-is: {algo: ppo, n_envs: 8, n_epochs: 1}\n")
    assert suite.main(args) == 1
    assert "made with params=" in capsys.readouterr().err


def test_a_world_is_a_task(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("ppo: {algo: ppo, n_envs: 8}\n")
    args = suite.Args(
        tmp_path / "out", tmp_path / "c.yaml", tasks=("guess",), tokens=(400,), kl_coefs=(0.05,), n_prompts=64, jobs=1
    )
    assert suite.main(args) == 0
    runs = {p.stem: json.loads(p.read_text()) for p in (tmp_path / "out" / "runs").glob("*.json")}
    assert set(runs) == {"guess-reference", "guess-400-beta0.05-ppo-seed0"}
    for run in runs.values():
        found = run["values"]["rm_score"]
        assert len(found) == 64
        assert set(found) == {0.0, 1.0}
        assert run["values"]["gold_score"] == found  # there is no other
        assert all(opening == "Which number?\n" for opening, _, _ in run["samples"])


def test_the_film_task_is_built_from_sentences(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [
        {"text": f"the {noun} is {word} and the rest of this long film is {word} too .", "label": label}
        for noun in ("story", "acting", "music", "ending", "plot")
        for word, label in (("superb", 1), ("lovely", 1), ("awful", 0), ("dull", 0))
        for _ in range(6)
    ]
    (tmp_path / "s.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path / "built"
    build_film_sentences.main(
        build_film_sentences.Args(str(tmp_path / "s.jsonl"), out, passes=12, reward_passes=20, normalized=64)
    )
    assert json.loads((out / "build.json").read_text())["reward_model_heldout_accuracy"] > 0.9
    config = json.loads((out / "reward_model" / "config.json").read_text())
    assert config["score_std"] > 0
    assert {json.loads(line)["prompt"].count(" ") for line in (out / "prompts.jsonl").read_text().splitlines()} == {3}
    (tmp_path / "s.jsonl").write_text('{"text": "fine", "label": 3}\n')
    assert build_film_sentences.main(build_film_sentences.Args(str(tmp_path / "s.jsonl"), out)) == 1
    assert "line 1: a record must have a text and a label, 0 or 1" in " ".join(capsys.readouterr().err.split())
