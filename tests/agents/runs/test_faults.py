"""A run that meets a numerical fault ends with one line, and what it saved before is whole."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from agents import make_algorithm
from agents.cli import train
from agents.runs.learning_rate import fall_linearly
from agents.runs.run import RunCallback
from llm_env.lm.runtime import CUBLAS_VARIABLE, be_deterministic
from tests.agents.cli.test_train import assert_same_run
from tests.agents.small_runs import SMALL

ROLLOUT = 4 * 6
REWARD = "tests.agents.runs.test_faults:letters"
calls = 0
broken_at: int | None = None


def letters(prompts: list[str], responses: list[str]) -> list[float]:
    """A reward function that from its `broken_at`-th call on pays more than float32 holds."""
    global calls
    calls += 1
    return [1e39 if broken_at is not None and calls >= broken_at else len(r) / 10 for r in responses]


@pytest.fixture
def arguments(tmp_path: Path, model_folder: Callable[..., str]) -> list[str]:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"Number {i}\n" for i in range(30)))
    return [
        "--model", model_folder("llama"), "--reward-model", REWARD, "--prompts", str(prompts), "--n-envs", "4",
        "--max-new-tokens", "6", "--max-prompt-length", "12", "--checkpoint-every", "1", "--n-samples", "0",
    ]  # fmt: skip


def run(folder: Path, arguments: list[str], *extra: str, iterations: int = 4) -> int:
    return train.main(["--output-dir", str(folder), "--total-timesteps", str(ROLLOUT * iterations), *arguments, *extra])


def error_of(capfd: pytest.CaptureFixture[str]) -> str:
    lines = [line for line in capfd.readouterr().err.splitlines() if line]
    assert len(lines) == 1
    return lines[0]


def saved_weights(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {p.parent.name: load_file(p) for p in sorted(folder.glob("checkpoints/*/policy.safetensors"))}


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_after_a_fault_the_checkpoint_before_it_goes_on_to_the_same_result(
    tmp_path: Path, arguments: list[str], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.agents.runs.test_faults.broken_at", None)
    assert run(tmp_path / "whole", arguments) == 0
    monkeypatch.setattr("tests.agents.runs.test_faults.calls", 0)
    monkeypatch.setattr("tests.agents.runs.test_faults.broken_at", 3)
    capfd.readouterr()
    assert run(tmp_path / "faulty", arguments) == 1
    line = error_of(capfd)
    assert line.startswith(
        "error: Iteration 3: the rollout's rewards are not finite. Likely cause: returns of up to 1e+39"
    )
    saved = saved_weights(tmp_path / "faulty")
    assert list(saved) == ["step_000000000024", "step_000000000048"]
    assert all(bool(torch.isfinite(w).all()) for weights in saved.values() for w in weights.values())
    assert not (tmp_path / "faulty" / "actor").exists()
    monkeypatch.setattr("tests.agents.runs.test_faults.broken_at", None)
    assert train.main(["--resume", str(tmp_path / "faulty")]) == 0
    (tmp_path / "whole" / "samples.jsonl").touch()
    (tmp_path / "faulty" / "samples.jsonl").touch()
    assert_same_run(tmp_path / "faulty", tmp_path / "whole")


@pytest.mark.parametrize(("algo", "rate", "iteration", "where"), [("ppo", "1e+09", 1, 2), ("a2c", "1e+08", 2, 1)])
def test_too_high_a_learning_rate_is_one_line_without_nan_on_the_disk(
    algo: str,
    rate: str,
    iteration: int,
    where: int,
    tmp_path: Path,
    arguments: list[str],
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "run"
    assert run(folder, arguments, "--algo", algo, "--learning-rate", rate) == 1
    line = error_of(capfd)
    assert line.startswith(f"error: Iteration {iteration}: the gradient of mini-batch {where} has the norm nan.")
    # The rate of the update at hand: the linear schedule has fallen by a fourth in the second of four.
    assert f"learning_rate={float(rate) * (5 - iteration) / 4:g} is too high" in line
    saved = saved_weights(folder)
    assert len(saved) == iteration - 1
    assert all(bool(torch.isfinite(w).all()) for weights in saved.values() for w in weights.values())
    assert train.main(["--resume", str(folder)]) == 1  # the same numbers again, and no traceback
    assert "too high" in error_of(capfd)


def test_a_log_that_was_overwritten_is_named_before_anything_is_loaded(
    tmp_path: Path, arguments: list[str], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(tmp_path / "run", arguments, iterations=2) == 0
    progress = tmp_path / "run" / "progress.csv"
    progress.write_bytes(b"garbage\r\n")
    capfd.readouterr()
    monkeypatch.setattr("agents.runs.run.make_algorithm", None)
    assert train.main(["--resume", str(tmp_path / "run"), "--total-timesteps", str(ROLLOUT * 3)]) == 1
    assert f"error: {progress}, line 1: this is no row of a run's log" in error_of(capfd)
    assert progress.read_bytes() == b"garbage\r\n"


@pytest.mark.parametrize("algo", ["ppo", "a2c", "dqn"])
def test_a_run_of_one_rollout_learns(
    algo: str, tmp_path: Path, arguments: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert run(folder, arguments, "--algo", algo, "--learning-rate", "1e-3", iterations=1) == 0
    out = " ".join(capfd.readouterr().out.split())
    assert "one rollout" not in out  # nothing to warn of: the rate is whole
    first = load_file(Path(arguments[1]) / "model.safetensors")
    last = load_file(folder / "actor" / "model.safetensors")
    assert any(not torch.equal(first[name], last[name]) for name in first)


def test_the_first_update_has_the_whole_rate_and_the_last_one_learns(model_folder: Callable[..., str]) -> None:
    model: Any = make_algorithm("a2c", n_envs=4, env_kwargs=SMALL, learning_rate=1e-3)
    fall_linearly(model, 4 * ROLLOUT)
    # What is left after each of four rollouts, as SB3 counts it, and after one more that a rounded length may have.
    rates = [model.lr_schedule(left) for left in (0.75, 0.5, 0.25, 0.0, -0.1)]
    assert rates == pytest.approx([1e-3, 0.75e-3, 0.5e-3, 0.25e-3, 0.25e-3])
    other: Any = make_algorithm("a2c", n_envs=4, env_kwargs=SMALL, learning_rate=1e-3)
    fall_linearly(other, ROLLOUT - 1)
    assert other.lr_schedule(0.0) == pytest.approx(1e-3)


@pytest.fixture
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Puts back what `be_deterministic` changes in this process."""
    monkeypatch.setenv(CUBLAS_VARIABLE, ":16:8")
    cudnn = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn
    torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]


@pytest.mark.usefixtures("as_before")
def test_a_deterministic_run_refuses_other_operations_in_one_line(
    tmp_path: Path, arguments: list[str], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(tmp_path / "plain", arguments, iterations=2) == 0
    assert run(tmp_path / "same", arguments, "--deterministic", iterations=2) == 0
    assert torch.are_deterministic_algorithms_enabled()
    (tmp_path / "plain" / "samples.jsonl").touch()
    (tmp_path / "same" / "samples.jsonl").touch()
    assert_same_run(tmp_path / "same", tmp_path / "plain")  # on a CPU all operations are
    capfd.readouterr()

    def after_iteration(callback: RunCallback) -> None:
        torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))

    monkeypatch.setattr(RunCallback, "after_iteration", after_iteration)
    assert run(tmp_path / "other", arguments, "--deterministic", iterations=2) == 1
    assert error_of(capfd) == "error: --deterministic: put_ does not have a deterministic implementation. Leave it out."


@pytest.mark.usefixtures("as_before")
def test_what_cublas_reads_is_set_before_the_gpu_starts_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CUBLAS_VARIABLE)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(ValueError, match="the GPU is in use already"):
        be_deterministic()
    assert not torch.are_deterministic_algorithms_enabled()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    be_deterministic()
    assert os.environ[CUBLAS_VARIABLE] == ":4096:8"
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    be_deterministic()  # set, so it does not matter
