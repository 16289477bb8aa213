"""The comparison's settings, its record and its table; the runs themselves at the smallest size."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import compare
from agents.algorithms.table import ALGORITHMS, checked_settings, settings_of
from agents.evaluation.statistics import Estimate
from agents.iteration.settings import IterationSettings
from comparison.figures import beats, draw, markdown_table, samples_table
from comparison.jobs import PEERS, PREFERENCE, Job, make_task, run_job
from comparison.pool import made_already
from comparison.preference_jobs import train_on_preferences
from comparison.spaces import SPACES, first_trial, job_params
from comparison.tasks import ComparedTask, Labels, MadeOtherwiseError, make_labels
from tests.conftest import ROOT


def result(algo: str, score: float, seed: int, kl: float = 2.0) -> dict[str, Any]:
    return {
        "algo": algo, "kl_coef": 0.05, "seed": seed, "rm_score": score, "gold_score": 2 * score, "kl": kl,
        "tokens_per_second": None if algo == "reference" else 100.0, "trained_tokens": 1000, "curve": [[10, 0.1, 0, 0]],
        "samples": [["A prompt:", " what it wrote", 1.25]],
    }  # fmt: skip


def test_every_algorithm_has_a_search_space_of_its_own_settings() -> None:
    named = {"dpo_labels", "iterated_dpo", "rejection_sampling"}
    assert {*ALGORITHMS, *PEERS} | named <= set(SPACES) <= {*ALGORITHMS, *PEERS, *PREFERENCE}
    for name in set(SPACES) & set(PREFERENCE):  # each choice is a setting of what trains
        rounds = {f.name for f in dataclasses.fields(IterationSettings)} | {"n_responses", "dpop_lambda", "tdpo_alpha"}
        assert set(SPACES[name]) == set(first_trial(name)) <= rounds
    for name in ALGORITHMS:
        choice = {k: v[1][0] for k, v in SPACES[name].items()}
        params = job_params(name, choice)
        rules = params.pop("env_kwargs", {})
        params.pop("n_envs")
        params.pop("mask_refresh", None)  # a callback
        assert checked_settings(name, params) == params
        assert set(params) <= set(settings_of(name))
        assert set(rules) <= {"top_p"}
        assert set(first_trial(name)) == set(SPACES[name])  # the first trial is the defaults, all of them


def test_the_best_trial_is_taken_and_the_defaults_where_there_is_none(tmp_path: Path) -> None:
    lines = [
        {"algo": "ppo", "chosen": {"learning_rate": 1.0, "n_envs": 4}, "objective": 0.1},
        {"algo": "ppo", "chosen": {"learning_rate": 2.0, "n_envs": 4}, "objective": 0.3},
        {"algo": "a2c", "chosen": {"learning_rate": 3.0, "n_envs": 4}, "objective": 0.9},
    ]
    (tmp_path / "search.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert compare.best_settings(tmp_path, "ppo") == {"learning_rate": 2.0, "n_envs": 4}
    assert compare.best_settings(tmp_path, "grpo") == job_params("grpo", first_trial("grpo"))


def test_above_the_reference_means_by_more_than_the_seeds_are_apart() -> None:
    reference = [result("reference", 0.0, 0, 0.0)]
    assert beats([result("ppo", s, i) for i, s in enumerate((1.0, 1.2))], reference) == "yes"
    assert beats([result("ppo", s, i) for i, s in enumerate((0.1, 0.4))], reference) == "**no**"
    assert beats([result("ppo", s, i) for i, s in enumerate((-0.1, 0.0))], reference) == "**no**"
    both = [
        result("reference", s, i, 0.0) for i, s in enumerate((0.0, 2.0))
    ]  # with labels, each seed has its own scale
    assert beats([result("ppo", s, i) for i, s in enumerate((1.0, 3.2))], both) == "yes"
    assert beats([result("ppo", s, i) for i, s in enumerate((3.0, 3.2))], both) == "**no**"


def test_of_one_seed_the_prompts_say_whether_it_stands_above_the_reference() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(0, 2, 100)
    reference = result("reference", 0.0, 0, 0.0)
    reference["values"] = {"rm_score": base.tolist(), "gold_score": base.tolist()}
    runs = []
    for algo, lift in (("ppo", 0.5), ("dpo", 0.1)):  # the interval is ± 0.2
        noise = rng.normal(0, 1, 100)
        lifted = base + lift + noise - noise.mean()
        run = result(algo, float(lifted.mean()), 0)
        runs.append({**run, "values": {"rm_score": lifted.tolist(), "gold_score": (base + 1).tolist()}})
    assert [beats([run], [reference]) for run in runs] == ["yes", "**no**"]
    assert beats([result("ppo", 9.0, 0)], [reference]) == ""  # its prompts' scores were not recorded
    table = markdown_table([reference, *runs])
    found = Estimate.of((np.array(runs[0]["values"]["rm_score"]) - base).tolist())
    assert f"| {runs[0]['rm_score']:.2f} ({found.mean:+.2f} ± {found.half_width:.2f}) | " in table
    assert "(+1.00 ± 0.00)" in table
    assert "| reference |  | 1 | 0.00 | 0.00 | 0.00 | 0.00 |" in table


def test_table_and_picture(tmp_path: Path) -> None:
    results = [result("reference", 0.0, 0, 0.0)]
    results += [result("ppo", s, i) for i, s in enumerate((1.0, 2.0))] + [result("trl_ppo", 0.5, 0)]
    table = markdown_table(results)
    assert (
        "| ppo | 0.05 | 2 | 1.50 (1.00 to 2.00) | 3.00 (2.00 to 4.00) | 2.00 (2.00 to 2.00) | 1.40 (0.90 to 1.90) |"
        in table
    )
    assert table.index("| reference |") < table.index("| ppo |") < table.index("| trl_ppo |")
    samples = samples_table(results)
    assert samples.startswith("| algorithm | A prompt: |")
    assert "| ppo, β 0.05 | what it wrote (1.25) |" in samples
    draw(results, tmp_path / "c.png")
    assert (tmp_path / "c.png").stat().st_size > 10_000


def test_unknown_algorithms_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.main(compare.Args(tmp_path, algos=("pppo",))) == 1
    assert "'pppo' is not known" in capsys.readouterr().err


def test_a_masked_policy_is_measured_under_its_masks() -> None:
    params = {"n_envs": 8, "env_kwargs": {"forbidden_tokens": ["."]}}
    got = run_job(Job("maskable_ppo", params, tokens=1, n_prompts=32))
    plain = run_job(Job("reference", {}, tokens=1, n_prompts=32))
    assert any("." in response for _, response, _ in plain["samples"])
    assert not any("." in response for _, response, _ in got["samples"])


@pytest.mark.parametrize("algo", ["reference", "best_of_4", "grpo", pytest.param("dqn", marks=pytest.mark.slow)])
def test_a_run_spends_its_budget_and_is_measured(algo: str) -> None:
    params = {"dqn": {"n_envs": 8, "gradient_steps": 1}, "grpo": {"n_envs": 8}}.get(algo, {})
    got = run_job(Job(algo, params, tokens=600, n_prompts=16))
    assert len(got["samples"]) == 8
    assert np.mean(got["values"]["rm_score"]) == pytest.approx(got["rm_score"], abs=1e-4)
    assert len(got["values"]["gold_score"]) == got["n_prompts"]
    assert got["response_length"] > 2
    if algo in ALGORITHMS:
        assert 600 <= got["trained_tokens"] < 1300
        assert got["curve"][-1][0] == got["trained_tokens"]
    else:
        assert got["trained_tokens"] == 0
        assert got["kl"] == pytest.approx({"reference": 0.0, "best_of_4": 0.6363}[algo], abs=1e-3)


@pytest.mark.slow
def test_a_worker_ends_with_the_process_that_made_it(tmp_path: Path) -> None:
    """Also where that is killed, which leaves it no time to say so; jobs that wait are not begun."""
    program = tmp_path / "parent.py"
    program.write_text(
        "import sys\n"
        f"sys.path[:0] = {[str(tmp_path), str(ROOT), str(ROOT / 'scripts' / 'lab')]!r}\n"
        "from job import begin\n"
        "from comparison.pool import workers\n"
        "if __name__ == '__main__':\n"
        "    with workers(1) as pool:\n"
        "        list(pool.map(begin, ['first', 'second']))\n"
    )
    (tmp_path / "job.py").write_text(
        "import os, time\n"
        "from pathlib import Path\n"
        "def begin(name):\n"
        f"    Path({str(tmp_path)!r}, name).write_text(str(os.getpid()))\n"
        "    time.sleep(300)\n"
    )
    parent = subprocess.Popen([sys.executable, str(program)])
    first = tmp_path / "first"
    worker = 0
    try:
        assert wait_until(lambda: first.is_file() and bool(first.read_text()), 300)
        worker = int(first.read_text())
        parent.terminate()
        parent.wait()
        assert wait_until(lambda: has_ended(worker), 60)
        assert not (tmp_path / "second").exists()
    finally:
        parent.kill()
        parent.wait()
        if worker:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)


def has_ended(process: int) -> bool:
    """Whether a process has ended, though perhaps nobody has asked how."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True).stdout.strip()
    return not state or state.startswith("Z")


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether a condition holds before the time is over."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def test_all_start_from_the_same_labels(tmp_path: Path) -> None:
    args = compare.Args(
        tmp_path, algos=("ppo", "dpo", "dpo_labels", "rejection_sampling", "iterated_dpo"), labels=48, tokens=900, seeds=(0,),
        ppo_seeds=(0,), n_prompts=8,
    )  # fmt: skip
    assert compare.main(args) == 0
    labels = tmp_path / "labels" / "seed0"
    note = json.loads((labels / "labels.json").read_text())
    assert len((labels / "rankings.jsonl").read_text().splitlines()) == note["rankings"] == 48
    assert (labels / "reward" / "reward_model" / "model.safetensors").is_file()
    results = {r["algo"]: r for r in json.loads((tmp_path / "results.json").read_text())}
    assert results["dpo_labels"]["trained_tokens"] == 0
    for name in ("ppo", "dpo", "rejection_sampling", "iterated_dpo"):
        assert 500 < results[name]["trained_tokens"] < 2000
    assert len({r["rm_score"] for r in results.values()}) > 3
    before = (labels / "labels.json").stat().st_mtime_ns
    assert compare.main(args) == 0  # nothing is done again
    assert (labels / "labels.json").stat().st_mtime_ns == before


def test_labels_by_an_annotator_of_ones_own_where_a_reward_model_is_there(tmp_path: Path) -> None:
    dots = "tests.conftest:count_dots"
    task = ComparedTask(reward_model=dots, annotator=dots, noise=0.0, label_pairs="best_worst")
    note = make_labels(Labels(str(tmp_path), 8, 0, task), threads=1)
    assert note["accuracy"] is None
    assert not (tmp_path / "reward").exists()
    records = [json.loads(x) for x in (tmp_path / "rankings.jsonl").read_text().splitlines()]
    assert 0 < len(records) <= 8
    for record in records:
        best, worst = (record["scores"][tier[0]] for tier in record["ranking"])
        assert best > worst
        assert len(record["responses"]) == 2
    noisy = dataclasses.replace(task, noise=1.0)
    make_labels(Labels(str(tmp_path / "noisy"), 8, 0, noisy), threads=1)
    lines = (tmp_path / "noisy" / "rankings.jsonl").read_text().splitlines()
    assert len(lines) == 8  # drawn, not scored: none is tied
    assert not any("scores" in json.loads(x) for x in lines)


@pytest.mark.parametrize(
    ("algo", "rounds", "takes_labels"), [("dpo", 1, True), ("iterated_dpo", 3, True), ("rejection_sampling", 2, False)]
)
def test_who_trains_on_the_labels_and_on_how_many_tokens_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, algo: str, rounds: int, takes_labels: bool
) -> None:
    asked: list[IterationSettings] = []
    monkeypatch.setattr("agents.iteration.rounds.iterate", asked.append)
    folder = tmp_path / "labels"
    task = ComparedTask(reward_model="tests.conftest:count_dots")
    make_labels(Labels(str(folder), 4, 0, task), threads=1)
    params = {"rounds": rounds, "n_responses": 8} if algo == "rejection_sampling" else {}
    job = Job(algo, params, tokens=2400, labels=str(folder), task=dataclasses.asdict(task))
    told = train_on_preferences(job, tmp_path, "judge", make_task(job))
    (settings,) = asked
    assert settings.method == {"iterated_dpo": "dpo"}.get(algo, algo)
    assert (settings.first_preferences is not None) == takes_labels
    note = json.loads((folder / "responses.json").read_text())
    length = note["tokens"] / 16
    assert settings.rounds == rounds
    generated = settings.rounds * (settings.prompts_per_round or 0) * settings.n_responses * length
    assert generated == pytest.approx(2400, rel=0.2)
    assert told["trained_tokens"] == 0  # nothing was generated


def test_results_and_labels_of_other_settings_are_not_taken_for_these(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    base = {"task_digest": ComparedTask().digest, "label_count": 0}
    (runs / "ppo-beta0.05-seed0.json").write_text(
        json.dumps({"params": {"n_envs": 3}, "tokens": 32_000, "n_prompts": 180, **base})
    )
    again = compare.Args(tmp_path, algos=("ppo",), seeds=(0,), ppo_seeds=(0,))
    assert compare.main(again) == 1
    printed = capsys.readouterr().err
    assert "ppo-beta0.05-seed0.json was made with params={'n_envs': 3}" in printed
    assert "Remove it to make it again" in printed
    job = Job("reference", n_prompts=4)
    path = runs / "reference-beta0.05-seed0.json"
    assert not made_already(job, {"label_count": 0}, path)
    path.write_text(json.dumps({"params": {}, "tokens": 1, "n_prompts": 4, **base}))
    assert made_already(job, {"label_count": 0}, path)  # which spends no tokens: their number says nothing
    for changed, count, name in (
        (dataclasses.replace(job, n_prompts=5), 0, "n_prompts=4"),
        (job, 10, "label_count=0"),
        (dataclasses.replace(job, task={"temperature": 0.7}), 0, "task_digest="),
    ):
        with pytest.raises(MadeOtherwiseError, match=name):
            made_already(changed, {"label_count": count}, path)
    same = dataclasses.replace(job, task={"params": {"ppo": {"n_envs": 4}}})
    assert made_already(same, {"label_count": 0}, path)  # another algorithm's settings are not this one's
    (tmp_path / "labels.json").write_text(json.dumps({"rankings": 48, "task_digest": ComparedTask().digest}))
    with pytest.raises(MadeOtherwiseError, match="rankings=48, and rankings=8"):
        make_labels(Labels(str(tmp_path), 8, 0, ComparedTask()), threads=1)


def test_a_task_of_ones_own_from_yaml(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"How was number {i}?\n" for i in range(20)))
    path = tmp_path / "task.yaml"
    path.write_text(
        f"prompts: {prompts}\nmax_new_tokens: 6\ngold: tests.conftest:count_dots\nparams: {{ppo: {{n_envs: 4}}}}\n"
    )
    task = ComparedTask.read(path)
    train, held_out = task.split_prompts()
    assert (len(train), len(held_out)) == (18, 2)
    assert not set(train) & set(held_out)
    got = run_job(Job("reference", task=dataclasses.asdict(task), n_prompts=2))
    assert got["response_length"] <= 6
    assert got["gold_score"] == sum(text.count(".") for _, text, _ in got["samples"]) / 2
    path.write_text("promts: x\n")
    assert compare.main(compare.Args(tmp_path / "out", task=path)) == 1
    assert "'promts' is not a setting" in capsys.readouterr().err
    for name in ("compare.yaml", "compare_pairs.yaml"):
        film = ComparedTask.read(ROOT / "examples" / "film_reviews" / name)
        assert {"ppo", "dpo"} < set(film.params) <= {*ALGORITHMS, *PREFERENCE}


def test_a_peer_without_its_environment_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"compare\.py makes it with --peers"):
        run_job(Job("trl_ppo", {}, peer_envs=str(tmp_path)))
