"""Long runs do not grow, and the soak test would notice if they did."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from rich.console import Console

import soak
from agents.cli import train
from soak import Measurement, growth, slowdown, verdict


def flat(count: int = 30) -> list[Measurement]:
    """A run that is as it should be: noise in the memory, and logs that grow evenly."""
    return [
        Measurement(
            iteration=100 * i, megabytes=400.0 + i % 2, handles=9, threads=4, objects=50_000 + i % 3, seconds=0.02,
            progress=500 + 30_000 * i, samples=220 * i, tensorboard=13_000 * i, checkpoints=150_000, command=80,
        )
        for i in range(1, count + 1)
    ]  # fmt: skip


def test_a_run_as_it_should_be_has_no_faults() -> None:
    assert verdict(flat()) == []
    assert slowdown(flat()) == 1.0


LEAKS: dict[str, Callable[[Measurement], dict[str, float]]] = {
    "handles": lambda m: {"handles": 9 + m.iteration // 1000},
    "threads": lambda m: {"threads": 4 + m.iteration // 1000},
    "megabytes": lambda m: {"megabytes": m.megabytes + m.iteration / 200},
    "objects": lambda m: {"objects": m.objects + m.iteration},
    "progress": lambda m: {"progress": m.iteration**2},
    "samples": lambda m: {"samples": m.iteration**2},
    "tensorboard": lambda m: {"tensorboard": m.iteration**2},
    "command": lambda m: {"command": 80 + max(0, m.iteration - 2500)},
}


@pytest.mark.parametrize("name", LEAKS)
def test_what_grows_is_named(name: str) -> None:
    measurements = [dataclasses.replace(m, **LEAKS[name](m)) for m in flat()]  # type: ignore[arg-type]
    faults = verdict(measurements)
    assert [fault.partition(":")[0] for fault in faults] == [name]


def test_what_the_warm_up_takes_is_no_growth() -> None:
    measurements = [dataclasses.replace(m, megabytes=300.0) if m.iteration <= 800 else m for m in flat()]
    assert verdict(measurements) == []
    assert growth(measurements, "megabytes")[0] == pytest.approx(0, abs=0.5)


def soaked(folder: Path) -> list[Measurement]:
    return soak.soak(folder, 300, 10, Console(quiet=True))


@pytest.mark.slow
def test_a_long_run_is_flat(tmp_path: Path) -> None:
    # In a process of its own, as a user's is: what a thousand tests before it have left makes holes in the memory.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        measurements = pool.submit(soaked, tmp_path).result()
    assert [m.iteration for m in measurements] == list(range(10, 301, 10))
    assert verdict(measurements) == []
    settled = [m for m in measurements if m.iteration >= 50]
    assert {m.handles for m in settled} == {settled[0].handles}
    assert settled[-1].megabytes - settled[0].megabytes < 5
    assert (tmp_path / "run" / "actor").is_dir()


def test_a_process_with_many_runs_keeps_no_files_open(
    tmp_path: Path, model_folder: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    def handles(name: str) -> tuple[int, int]:
        arguments = ["--model", model_folder("llama"), "--reward-model", "tests.conftest:count_dots", "--n-envs", "2"]
        arguments += ["--max-new-tokens", "2", "--max-prompt-length", "8", "--total-timesteps", "8", "--n-samples", "0"]
        prompts = tmp_path / "prompts.txt"
        prompts.write_text("One\nTwo\n")
        assert train.main([*arguments, "--prompts", str(prompts), "--output-dir", str(tmp_path / name)]) == 0
        return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

    first = handles("warm-up") and handles("first")
    assert handles("second") == first
