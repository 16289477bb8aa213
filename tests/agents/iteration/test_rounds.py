"""Rounds of generating, ranking and training."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from agents.cli import iterate as script
from agents.iteration import evaluate as evaluating
from agents.iteration import judging
from agents.iteration.report import rounds_table
from agents.iteration.settings import IterationSettings
from agents.iteration.state import RoundsState
from agents.iteration.training import trainer_settings
from agents.preferences.records import Candidates, Response, read_rankings, write_jsonl
from llm_env.default_task import DEFAULT_MODEL, DEFAULT_REWARD_MODEL

PROMPTS, HELD_OUT = 16, 8
SMALL = (
    *("--prompts-per-round", str(PROMPTS), "--n-responses", "3", "--n-eval", str(HELD_OUT), "--max-new-tokens", "12"),
    *("--batch-size", "8", "--device", "cpu", "--rounds", "2"),
)


@pytest.fixture(autouse=True)
def quick_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures take a third of the time of rounds this small; those of `whole`, which is made before, are drawn."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda self, path, **options: Path(path).write_bytes(b""))


def run(folder: Path, *extra: str) -> int:
    arguments = ["--output-dir", str(folder), *SMALL, *extra]
    return script.main(arguments)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "actor" / "model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[k], other[k]) for k in one)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("iterate") / "whole"
    assert run(folder, "--keep-rounds", "1") == 0
    return folder


def test_rounds_leave_what_they_did(whole: Path) -> None:
    evaluations = json.loads((whole / "rounds.json").read_text())
    assert [e["round"] for e in evaluations] == [0, 1, 2]
    assert abs(evaluations[0]["kl"]) < 1e-4
    assert "gold_gain" not in evaluations[0]
    for number in (1, 2):
        ours, theirs = (evaluations[n]["values"]["gold_score"] for n in (number, number - 1))
        assert evaluations[number]["gold_gain"][0] == pytest.approx(sum(ours) / HELD_OUT - sum(theirs) / HELD_OUT)
    assert (whole / "rounds.png").stat().st_size > 10_000
    table = (whole / "rounds.md").read_text()
    assert table.count("± ") >= 8
    first, second = (json.loads((whole / f"round_{n}" / "responses.json").read_text()) for n in (1, 2))
    assert first["settings"]["seed"] != second["settings"]["seed"]
    assert first["settings"]["actors"] == [DEFAULT_MODEL]
    assert second["settings"]["actors"] == [str(whole / "round_1" / "training" / "actor")]
    prompts = [
        {json.loads(x)["prompt"] for x in (whole / f"round_{n}" / "responses.jsonl").read_text().splitlines()}
        for n in (1, 2)
    ]
    assert not prompts[0] & prompts[1]  # others, until all were used
    sizes = [len((whole / f"round_{n}" / "training_data.jsonl").read_text().splitlines()) for n in (1, 2)]
    assert sizes[1] > 1.8 * sizes[0]  # the first round's pairs again
    record = json.loads((whole / "round_2" / "train.jsonl").read_text().splitlines()[0])
    (best, worst) = [record["scores"][tier[0]] for tier in record["ranking"]]
    assert record["margin"] == pytest.approx(best - worst)
    note = json.loads((whole / "round_2" / "training" / "preference.json").read_text())
    assert note["reference"] == DEFAULT_MODEL
    assert not same(weights(whole / "round_1" / "training"), weights(whole))
    assert same(weights(whole / "round_2" / "training"), weights(whole))


@pytest.mark.slow
def test_rounds_in_two_processes_are_those_of_one(tmp_path: Path) -> None:
    """Sampling and judging stay in one, with the same seeds; the training makes the updates of one."""
    for processes in (1, 2):
        # 14 pairs: no batch is without its full number of them
        more = ("--rounds", "1", "--batch-size", "2", "--processes", str(processes))
        assert run(tmp_path / str(processes), *more) == 0
    one, two = (weights(tmp_path / name / "round_1" / "training") for name in "12")
    start = load_file(Path(DEFAULT_MODEL) / "model.safetensors")
    apart = sum(float((one[n] - two[n]).norm() ** 2) for n in one) ** 0.5
    assert 0 < apart < 1e-3 * sum(float((one[n] - start[n]).norm() ** 2) for n in one) ** 0.5
    data = [(tmp_path / name / "round_1" / "training_data.jsonl").read_text() for name in "12"]
    assert data[0] == data[1]


@pytest.mark.slow
def test_rounds_of_an_algorithm_in_two_processes(tmp_path: Path) -> None:
    ppo = ("--method", "ppo", "--n-envs", "8", "--total-timesteps", str(2 * 8 * 12))
    assert run(tmp_path / "two", "--rounds", "1", "--processes", "2", *ppo) == 0
    training = tmp_path / "two" / "round_1" / "training"
    command = (training / "command.txt").read_text()
    assert command.startswith("python scripts/train.py --output-dir")
    assert "--processes 2" in command
    header, *rows = (training / "progress.csv").read_text().splitlines()
    steps = header.split(",").index("time/total_timesteps")
    assert [float(row.split(",")[steps]) for row in rows] == [8 * 12, 2 * 8 * 12]


def test_prompts_come_round_again_in_another_order(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"How was number {i}?\n" for i in range(12)))
    settings = IterationSettings(
        output_dir=tmp_path / "out", prompts=str(prompts), eval_prompts=str(prompts), prompts_per_round=4
    )
    state = RoundsState(settings, Console(quiet=True))
    state.keep_settings()
    rounds = [judging.prompts_of_round(state.prompts, 4, number, seed=0) for number in range(1, 7)]
    laps = [[p.prompt for prompts in rounds[i : i + 3] for p in prompts] for i in (0, 3)]
    assert sorted(laps[0]) == sorted(laps[1]) == sorted(p.prompt for p in state.prompts)
    assert laps[0] != laps[1]
    assert rounds == [judging.prompts_of_round(state.prompts, 4, number, seed=0) for number in range(1, 7)]


@pytest.mark.parametrize(
    "where",
    [
        "training",
        *(
            pytest.param(where, marks=pytest.mark.slow)
            for where in ("responses", "rankings", "selection", "after training", "evaluation")
        ),
    ],
)
def test_interrupted_in_a_round_it_ends_with_the_same_result(
    tmp_path: Path, whole: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second round stops in a step; what the step had written is left lying about."""
    folder = tmp_path / "parts"
    second = folder / "round_2"

    def stop(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if where == "responses":
            from agents.preferences import folder as collecting

            real = collecting.collect_responses

            def half(prompts: Any, sampling: Any, *args: Any) -> Any:
                if "round_1" not in sampling.sources[0].name:
                    yield from real(prompts, sampling, *args)
                    return
                (second / "responses.jsonl").write_text('{"id": "p0", "prompt"')
                raise KeyboardInterrupt

            patch.setattr(collecting, "collect_responses", half)
        elif where == "rankings":
            ranked = judging.rank_in
            patch.setattr(judging, "rank_in", lambda f, *a: stop() if f == second else ranked(f, *a))
        elif where == "selection":
            chosen = judging.write_jsonl
            patch.setattr(judging, "write_jsonl", lambda p, r: stop() if p.parent == second else chosen(p, r))
        elif where == "evaluation":
            evaluated = evaluating.evaluate_actor
            patch.setattr(evaluating, "evaluate_actor", lambda s, n: stop() if n == 2 else evaluated(s, n))
        else:
            from transformers import TrainerCallback

            from agents.supervised import trainer as supervised

            class Stop(TrainerCallback):
                def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                    if "round_2" in args.output_dir:
                        raise KeyboardInterrupt

                def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                    if "round_2" in args.output_dir:
                        raise KeyboardInterrupt

            class Late(Stop):
                def on_save(self, *args: Any, **kwargs: Any) -> None:
                    """Not yet."""

            kind = Stop if where == "training" else Late
            patch.setattr(supervised, "StageProgress", lambda console: kind())
        assert run(folder, "--keep-rounds", "1") == 130
    assert not (folder / "actor").exists()
    done = json.loads((second / "steps.json").read_text()) if (second / "steps.json").is_file() else {}
    assert where.removeprefix("after ") not in done
    assert run(folder, "--keep-rounds", "1") == 0
    assert same(weights(folder), weights(whole))
    names = ("values", "rm_score", "samples")
    ours, theirs = (json.loads((f / "rounds.json").read_text()) for f in (folder, whole))
    assert [[e[n] for n in names] for e in ours] == [[e[n] for n in names] for e in theirs]


def test_rounds_can_be_added_and_other_settings_are_refused(
    tmp_path: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    folder = tmp_path / "more"
    shutil.copytree(whole, folder)
    before = (folder / "round_2" / "steps.json").stat().st_mtime_ns
    (folder / "round_2" / "training").rename(
        tmp_path / "away"
    )  # the third starts at an actor in the folder it was made in
    (tmp_path / "away").rename(folder / "round_2" / "training")
    assert run(folder, "--keep-rounds", "1", "--rounds", "3") == 0
    assert (folder / "round_2" / "steps.json").stat().st_mtime_ns == before
    assert len(json.loads((folder / "rounds.json").read_text())) == 4
    capsys.readouterr()
    assert run(folder, "--keep-rounds", "0") == 1
    assert "rounds with other settings (keep_rounds)" in " ".join(capsys.readouterr().err.split())
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("x")
    assert run(tmp_path / "full") == 1
    assert "is not empty and holds no rounds" in " ".join(capsys.readouterr().err.split())


def test_a_first_attempt_that_failed_can_be_mended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "out", "--judge", "./nothing", "--rounds", "1") == 1
    assert "./nothing" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    # A judge that fails when it is asked leaves responses, and no results.
    scored = ("--reward-model", "llm_env.default_task.gold:gold_score", "--rounds", "1")
    assert run(tmp_path / "out", "--judge", "math:dist", *scored) == 1
    assert (tmp_path / "out" / "round_1" / "responses.jsonl").is_file()
    (tmp_path / "out" / "mine.txt").write_text("precious")
    assert run(tmp_path / "out", "--judge", "gold", *scored) == 0
    assert (tmp_path / "out" / "mine.txt").read_text() == "precious"


def test_rejection_sampling_learns_the_best_of_each_prompt(tmp_path: Path) -> None:
    assert run(tmp_path / "raft", "--method", "rejection_sampling", "--judge", "gold", "--rounds", "1") == 0
    folder = tmp_path / "raft" / "round_1"
    texts = [json.loads(x) for x in (folder / "train.jsonl").read_text().splitlines()]
    ranked = {r["prompt"]: r for r in map(json.loads, (folder / "rankings.jsonl").read_text().splitlines())}
    for text in texts:
        record = ranked[text["prompt"]]
        best = {r["id"]: r for r in record["responses"]}[record["ranking"][0][0]]
        assert (text["response"], text["finished"]) == (best["text"], best["finished"])
        assert record["scores"][best["id"]] == max(record["scores"].values())
    assert (folder / "training" / "sft.json").is_file()
    assert (tmp_path / "raft" / "actor" / "model.safetensors").is_file()


def test_an_opponent_selection_and_given_preferences(tmp_path: Path, whole: Path) -> None:
    given = tmp_path / "given.jsonl"
    given.write_text('{"prompt": "How was it?", "chosen": " Good.", "rejected": " Bad."}\n')
    arguments = ("--opponent", str(whole / "actor"), "--select", "lost", "margin", "--select-share", "0.5")
    extra = ("--first-preferences", str(given), "--rounds", "1", "--judge", "gold")
    assert run(tmp_path / "arena", *arguments, *extra) == 0
    counts = json.loads((tmp_path / "arena" / "round_1" / "selection.json").read_text())
    assert 0 < counts["lost"] < counts["rankings"]
    assert counts["margin"] == -(-counts["pairs"] // 2)
    assert counts["given"] == 1
    lines = [json.loads(x) for x in (tmp_path / "arena" / "round_1" / "train.jsonl").read_text().splitlines()]
    assert len(lines) == counts["given"] + counts["margin"]
    for line in lines[1:]:  # the winner's response is what is learned
        (winner,) = [r for r in line["responses"] if r["id"] == line["ranking"][0][0]]
        assert winner["source"].startswith(str(whole / "actor"))


def test_judges_that_disagree(tmp_path: Path) -> None:
    judges = ("--judge", "gold", DEFAULT_REWARD_MODEL, "--select", "disputed", "--select-share", "0.25")
    assert run(tmp_path / "out", *judges, "--rounds", "1") == 0
    counts = json.loads((tmp_path / "out" / "round_1" / "selection.json").read_text())
    assert counts["disputed"] == -(-counts["rankings"] // 4)


def test_each_round_trains_from_a_seed_of_its_own_and_not_over_half_an_actor(tmp_path: Path) -> None:
    state = RoundsState(IterationSettings(output_dir=tmp_path / "out"), Console(quiet=True))
    state.keep_settings()
    half = tmp_path / "out" / "round_1" / "training" / "actor" / "model-00002.safetensors"
    half.parent.mkdir(parents=True)
    half.write_bytes(b"half")
    arguments = [trainer_settings(state, n) for n in (1, 2)]
    assert arguments[0]["seed"] != arguments[1]["seed"]
    assert [a["model"] for a in arguments] == [DEFAULT_MODEL, str(half.parent)]
    assert not half.exists()


def test_noisy_judges_err_each_in_their_own_way_and_in_each_round_anew(tmp_path: Path) -> None:
    judges = ("tests.conftest:count_dots", "tests.conftest:count_words")
    settings = IterationSettings(output_dir=tmp_path / "out", judge=judges, noise=1.0)
    state = RoundsState(settings, Console(quiet=True))
    state.keep_settings()
    candidates = [
        Candidates(f"p{i}", f"Prompt {i}:", tuple(Response(f"r{j}", f" word{j}") for j in range(4))) for i in range(8)
    ]
    orders = []
    for number in (1, 2):
        folder = tmp_path / "out" / f"round_{number}"
        folder.mkdir()
        write_jsonl(folder / "responses.jsonl", [c.to_json() for c in candidates])
        judging.rank(state, number)
        rankings = read_rankings(folder / "rankings.jsonl")
        orders += [tuple(r.tiers for r in rankings if r.annotator == name) for name in judges]
    assert [len(order) for order in orders] == [8] * 4
    assert len(set(orders)) == 4  # by score, all of them are tied: the orders are the noise's


def test_people_rank_on_the_page_and_the_round_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from agents.preferences import page

    class Quiet:
        server_port = 7860

        def launch(self, **kwargs: Any) -> None:
            """No server: the answers come from a thread."""

        def close(self) -> None:
            """Nothing is open."""

    def answering(answers: page.Answers) -> Quiet:
        def work() -> None:
            while (number := answers.next("ann")) is not None:
                answers.add("ann", number, range(1, 1 + len(answers.questions[number].candidates.responses)))
                time.sleep(0.001)

        threading.Thread(target=work).start()
        return Quiet()

    monkeypatch.setattr(page, "build", answering)
    assert run(tmp_path / "out", "--judge", "people", "--rounds", "1") == 0
    lines = (tmp_path / "out" / "round_1" / "rankings.jsonl").read_text().splitlines()
    assert {json.loads(x)["annotator"] for x in lines} == {"ann"}
    assert len(lines) == PROMPTS


@pytest.mark.slow
@pytest.mark.parametrize("people", [False, True])
def test_an_algorithm_of_sb3_as_the_method(tmp_path: Path, people: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    extra = ["--method", "ppo", "--total-timesteps", "1024", "--n-envs", "16"]
    if people:
        from agents.preferences import page
        from agents.preferences.judge import RewardJudge
        from agents.preferences.records import write_jsonl
        from llm_env.lm.names import LoadSettings

        def serve(candidates: Any, path: Path, *args: Any, **kwargs: Any) -> None:
            judge = RewardJudge("gold", LoadSettings("float32", "cpu"))
            write_jsonl(path, [r.to_json() for r in judge.rank(candidates)])

        monkeypatch.setattr(page, "serve", serve)
        extra += ["--judge", "people"]
    assert run(tmp_path / "out", *extra) == 0
    settings = (tmp_path / "out" / "round_2" / "training" / "config.yaml").read_text()
    assert "round_1/training/actor" in settings
    assert "stop_on:\n- none\n" in settings  # what rounds are measured by does not end one
    assert ("round_2/reward_modelling/reward_model" in settings) == people
    if people:
        lines = (tmp_path / "out" / "round_2" / "all_rankings.jsonl").read_text().splitlines()
        assert len(lines) == 2 * PROMPTS
    assert (tmp_path / "out" / "actor" / "model.safetensors").is_file()
    assert run(tmp_path / "out", *extra) == 0  # nothing is left to do


def test_the_table_says_where_the_gold_score_does_not_rise() -> None:
    base = {
        "rm_score": 1.0, "gold_score": 2.0, "kl": 0.5, "response_length": 9.0, "diversity": {"distinct_2": 0.3},
        "half_widths": {"rm_score": 0.1, "gold_score": 0.2}, "samples": [["p", " t", 0.5]],
    }  # fmt: skip
    gains = ({}, {"rm_gain": [0.1, 0.2], "gold_gain": [0.3, 0.1]}, {"rm_gain": [0.1, 0.2], "gold_gain": [0.1, 0.3]})
    table = rounds_table([{**base, "round": i, **gain} for i, gain in enumerate(gains)])
    rows = table.splitlines()[2:5]
    assert "| yes |" in rows[1]
    assert "| **no** |" in rows[2]
    assert "yes" not in rows[0]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("--method", "dppo"), "method='dppo' is not known; use one of dpo"),
        (("--method", "ars"), "trains no language model further"),
        (("--select", "lost"), "give --opponent"),
        (("--select", "disputed"), "a single judge disagrees with nobody"),
        (("--select", "best"), "select: 'best' is not known"),
        (("--method", "ppo", "--reference", "first"), "ppo starts at its reference"),
        (("--method", "rejection_sampling", "--select", "margin"), "trains on texts, not on pairs"),
        (("--n-responses", "1"), "n_responses=1 must be a whole number, at least 2"),
        (("--judge", "./nothing"), "./nothing"),
        (("--first-preferences", "/no/such.jsonl"), "first_preferences='/no/such.jsonl': there is no such file"),
        (("--eval-prompts", "/no/such.txt"), "eval_prompts='/no/such.txt': there is no such file"),
        (("--method-kwargs", "what"), "must be name=value"),
    ],
)
def test_bad_settings_are_named(
    tmp_path: Path, extra: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "out", *extra) == 1
    assert message in " ".join(capsys.readouterr().err.split())
