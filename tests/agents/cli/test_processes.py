"""Commands in several processes: how they start, end, fail, and go on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from agents.checksums import checksum
from agents.cli import train
from agents.cli.start import start
from agents.processes import LOST, ProcessSettings, _say_who_failed, timeout_in
from llm_env.default_task import DEFAULT_MODEL
from tests.conftest import ROOT

ITERATIONS = 4
RUN = {
    "reward-model": "tests.agents.rank_faults:count_dots",
    "n-envs": 8,
    "max-new-tokens": 8,
    "total-timesteps": 8 * 8 * ITERATIONS,
    "checkpoint-every": 1,
    "sample-every": 2,
    "n-samples": 2,
    "eval-every": 2,
    "n-eval": 4,
    "kl-target": 1.0,
    "lr-schedule": "constant",  # a small rate in the last update would hide older weights
    "learning-rate": 3e-4,  # adapters' own would have learned everything
}
IN_SHARDS = ("--sharding", "full")
CALLS = {"collecting": 8 * 2 + 3, "scoring": 3, "training": 4 * 4 * 2 + 2, "logging": 3, "saving": 3}
"""In which the third iteration is under way."""


def command(*arguments: object, processes: int = 2, **environment: str) -> subprocess.Popen[str]:
    words = [sys.executable, "scripts/train.py", "--processes", processes, "--rank-timeout", 60, *arguments]
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(
        list(map(str, words)), cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def new(folder: Path, *more: object) -> tuple[object, ...]:
    return ("--output-dir", folder, *(word for name, value in RUN.items() for word in (f"--{name}", value)), *more)


def result(folder: Path) -> tuple[str, str, int]:
    """What a run left: its weights, its samples, and how many rows its log has."""
    rows = (folder / "progress.csv").read_text(encoding="utf-8").count("\n")
    return checksum(folder / "actor" / "model.safetensors"), (folder / "samples.jsonl").read_text("utf-8"), rows


def run_whole(folder: Path, *more: object) -> Path:
    process = command(*new(folder), *more)
    out, err = process.communicate()
    assert (process.returncode, err) == (0, ""), out + err
    assert "8 slots in 2 processes" in out
    assert ("weights in shards" in out) == ("--sharding" in more)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_whole(tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture(scope="module")
def whole_in_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_whole(tmp_path_factory.mktemp("shards") / "run", *IN_SHARDS)


@pytest.mark.slow
@pytest.mark.parametrize(("phase", "rank"), [("collecting", 1), ("scoring", 0), ("training", 1), ("saving", 0)])
def test_a_rank_that_is_killed_ends_the_run_in_a_line_and_it_goes_on(
    phase: str, rank: int, whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    process = command(*new(folder), FALL=f"{rank}:{phase}:{CALLS[phase]}:killed")
    _, err = process.communicate()
    assert process.returncode == 1
    assert err.count("\n") == 1
    assert err.startswith(f"error: rank {rank} was killed by signal 9 (SIGKILL")
    process = command("--resume", folder)
    out, err = process.communicate()
    assert (process.returncode, err) == (0, ""), out + err
    assert result(folder) == result(whole)


@pytest.mark.slow
@pytest.mark.parametrize(("phase", "rank"), [("training", 1), ("saving", 0)])
def test_a_run_in_shards_whose_rank_is_killed_goes_on_exactly(
    phase: str, rank: int, whole_in_shards: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    process = command(*new(folder), *IN_SHARDS, FALL=f"{rank}:{phase}:{CALLS[phase]}:killed")
    _, err = process.communicate()
    assert process.returncode == 1
    assert err.startswith(f"error: rank {rank} was killed by signal 9 (SIGKILL")
    process = command("--resume", folder, *IN_SHARDS)
    out, err = process.communicate()
    assert (process.returncode, err) == (0, ""), out + err
    assert result(folder) == result(whole_in_shards)


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), IN_SHARDS], ids=["replicas", "shards"])
def test_ranks_go_back_together_to_the_actor_of_before_the_gold_score_fell(
    more: tuple[str, ...], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    changed = {"reward-model": "tests.agents.rank_faults:rising", "gold": "tests.agents.rank_faults:falling"}
    changed |= {"total-timesteps": 8 * 8 * 10, "checkpoint-every": 5, "eval-every": 0, "lr-schedule": "linear"}
    process = command(*(w for k, v in {**RUN, **changed}.items() for w in (f"--{k}", v)), "--output-dir", folder, *more)
    out, err = process.communicate()
    assert process.returncode == 0, out + err
    assert "the run ends with the actor of iteration 5" in " ".join(out.split())
    actor = load_file(folder / "actor" / "model.safetensors")
    policies = [load_file(path / "policy.safetensors") for path in sorted((folder / "checkpoints").iterdir())]
    assert [all(torch.equal(t, policy[f"actor.{n}"]) for n, t in actor.items()) for policy in policies] == [True, False]


@pytest.mark.slow
def test_the_actor_in_shards_is_the_actor_of_replicas(whole: Path, whole_in_shards: Path) -> None:
    """The same random streams, so the same tokens; sums are taken in another order."""
    one, other = (load_file(run / "actor" / "model.safetensors") for run in (whole, whole_in_shards))
    start = load_file(Path(DEFAULT_MODEL) / "model.safetensors")
    assert one.keys() == other.keys()
    apart = sum(float((one[n] - other[n]).norm() ** 2) for n in one) ** 0.5
    moved = sum(float((one[n] - start[n]).norm() ** 2) for n in one) ** 0.5
    assert 0 < apart < 1e-4 * moved
    lines = [(run / "samples.jsonl").read_text("utf-8").splitlines() for run in (whole, whole_in_shards)]
    for theirs, ours in zip(*(map(json.loads, of_run) for of_run in lines), strict=True):
        assert ours["response"] == theirs["response"]
        assert ours["kl"] == pytest.approx(theirs["kl"], abs=1e-4)
    assert abs(ours["kl"]) > 1e-2  # so that older weights would be seen


@pytest.mark.slow
def test_a_run_in_shards_goes_on_in_replicas_and_in_one_process(tmp_path: Path) -> None:
    """A checkpoint's tensors are whole; with LoRA, in bf16, what is saved is merged in float32."""
    folder = tmp_path / "run"
    run_whole(folder, *IN_SHARDS, "--lora-rank", 2, "--mixed-precision", "bf16")
    adapter = load_file(folder / "adapter" / "adapter_model.safetensors")
    saved = load_file(folder / "actor" / "model.safetensors")
    start = load_file(Path(DEFAULT_MODEL) / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj"
    b, a = (adapter[f"base_model.model.{name}.lora_{half}.weight"] for half in "BA")
    moved = saved[f"{name}.weight"] - start[f"{name}.weight"]
    assert float(moved.abs().max()) > 0
    torch.testing.assert_close(moved, 2 * b @ a, rtol=0, atol=1e-6)  # α/r = 2
    total = 2 * RUN["total-timesteps"]  # type: ignore[operator]
    for processes in (2, 1):
        process = command("--resume", folder, "--total-timesteps", total, processes=processes)
        out, err = process.communicate()
        assert (process.returncode, err) == (0, ""), out + err
        total += RUN["total-timesteps"]  # type: ignore[operator]
    tensors = load_file(folder / "actor" / "model.safetensors")
    assert {t.dtype for t in tensors.values()} == {torch.float32}


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_on_one_rank_is_one_line(rank: int, tmp_path: Path) -> None:
    process = command(*new(tmp_path / "run"), FALL=f"{rank}:training:2:fails")
    _, err = process.communicate()
    assert process.returncode == 1
    assert err == f"error: rank {rank}: AssertionError: the reward's own mistake\n"


@pytest.mark.slow
@pytest.mark.parametrize("how", ["hangs", "hangs in C"])
def test_a_rank_that_hangs_ends_the_run_within_the_limit(how: str, tmp_path: Path) -> None:
    process = command(*new(tmp_path / "run"), "--rank-timeout", 25, FALL=f"1:scoring:2:{how}")
    _, err = process.communicate()
    assert process.returncode == 1
    assert err == "error: rank 1 did not come to where the others wait, for 25 s (--rank-timeout)\n"


@pytest.mark.slow
def test_ctrl_c_saves_and_the_run_goes_on_to_the_same_weights(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = command(*new(folder))
    until = time.monotonic() + 300
    while not (folder / "progress.csv").is_file() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert err == ""
    if process.returncode == 130:  # else it was at its end already
        assert f"Go on with: python scripts/train.py --processes 2 --resume {folder}" in out
        process = command("--resume", folder)
        _, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    assert result(folder) == result(whole)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 4])
def test_another_number_of_processes_goes_on_and_says_that_it_is_not_exact(
    processes: int, whole: Path, tmp_path: Path
) -> None:
    import shutil

    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    total = 2 * RUN["total-timesteps"]  # type: ignore[operator]
    process = command("--resume", folder, "--total-timesteps", total, processes=processes)
    out, err = process.communicate()
    assert (process.returncode, err) == (0, ""), out + err
    assert "the checkpoint is of 2 processes, and now there" in out
    rows = (folder / "progress.csv").read_text(encoding="utf-8").splitlines()
    steps = [float(row.split(",")[rows[0].split(",").index("time/total_timesteps")]) for row in rows[1:]]
    assert steps == [64.0 * (i + 1) for i in range(2 * ITERATIONS)]


# ------------------------------------------------------------------------------------------------- in this process
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--processes", "0"], "processes=0 must be"),
        (["--rank-timeout", "0"], "rank_timeout=0.0 must be"),
        (["--processes", "3"], "n_envs=64 must be a multiple of the 3 processes: take 66"),
        (
            ["--processes", "2", "--algo", "grpo", "--n-envs", "4"],
            "n_envs=4 must be a multiple of the 2 processes x group_size=4: take 8",
        ),
        (["--processes", "2", "--algo", "dqn"], "dqn cannot be used with processes=2: its replay buffer"),
        (["--sharding", "half", "--processes", "2"], "sharding='half' is not known"),
        (["--sharding", "full"], "sharding='full' shares the weights among several processes: --processes 2 or more"),
        (
            ["--processes", "2", "--sharding", "full", "--episodes", "continuous"],
            "episodes='continuous' cannot be used with sharding='full': only where rollouts are whole episodes",
        ),
        (
            ["--processes", "2", "--sharding", "full", "--algo", "maskable_ppo", "--mask-refresh", "2"],
            "mask_refresh=2 cannot be used with sharding='full': its copy of the actor",
        ),
    ],
)
def test_what_cannot_be_started(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(options) == 1
    assert message in " ".join(capsys.readouterr().err.split())


def test_under_torchrun_it_says_itself_how_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(name, value)
    assert ProcessSettings().world == 2
    with pytest.raises(ValueError, match="processes=2: torchrun has started the processes already"):
        ProcessSettings(processes=2).check_processes()


def test_a_command_for_one_process_refuses_torchrun(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(name, value)
    assert start("evaluate_actor") == 1
    assert "evaluate_actor runs in one process: start it without torchrun" in capsys.readouterr().err


def test_the_limit_is_read_before_the_rest() -> None:
    assert timeout_in(["--seed", "1", "--rank-timeout", "5"]) == 5
    assert timeout_in(["--rank_timeout=7.5", "--seed", "1"]) == 7.5
    assert timeout_in(["--rank-timeout", "soon"]) == timeout_in([]) == ProcessSettings().rank_timeout


@pytest.mark.parametrize(
    ("statuses", "said", "status"),
    [
        ({0: LOST, 1: -9}, "error: rank 1 was killed by signal 9 (SIGKILL; if nobody sent it, memory ran out).\n", 1),
        ({0: 1, 1: LOST}, "", 1),  # rank 0 has said it
        ({1: LOST}, "error: rank 1 lost the connection to the other ranks.\n", 1),
        ({0: 130, 1: 130}, "", 130),
    ],
)
def test_who_failed(statuses: dict[int, int], said: str, status: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert _say_who_failed(statuses) == status
    assert capsys.readouterr().err == said
