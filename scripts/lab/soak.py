"""Trains a tiny random model for many iterations, and says what grows: memory, file handles, threads, objects, files, time.

    python scripts/lab/soak.py --iterations 20000 --output-dir /tmp/soak

Checkpoints, evaluations, samples and logs are those of any run; only the model is tiny, so that a day's worth of iterations
takes minutes. It reads ``/proc``, so it runs on Linux. The exit status is 1 if something grows that should not.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from stable_baselines3.common.callbacks import BaseCallback
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from agents.console import PlainConsole
from agents.runs.run import Interrupted, TrainingRun
from agents.runs.settings import AlgorithmSettings, FolderSettings, RunSettings, TaskOptions, TrainingSettings
from llm_env.default_task import DEFAULT_GOLD, DEFAULT_MODEL
from llm_env.lm.loading import quiet_loading

FILES = ("progress.csv", "samples.jsonl", "tensorboard", "checkpoints", "command.txt")
WARM_UP = 1 / 3  # of the measurements: caches fill, and the allocator finds its size
MOST_GROWTH = 0.02  # of memory and objects, over what is left
MOST_SLOWDOWN = 1.25  # of an iteration, last third against the one before; other processes disturb it


@dataclass(frozen=True)
class Measurement:
    """What the process and its run's folder held at one moment.

    Attributes:
        iteration: Iterations so far.
        megabytes: Resident memory, in MB.
        handles: Open file descriptors.
        threads: Threads of the process.
        objects: Objects that Python's garbage collector knows.
        seconds: Mean time of an iteration since the measurement before, in s.
        progress, samples, tensorboard, checkpoints, command: Sizes of the run's files and folders, in bytes.
    """

    iteration: int
    megabytes: float
    handles: int
    threads: int
    objects: int
    seconds: float
    progress: int
    samples: int
    tensorboard: int
    checkpoints: int
    command: int


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder; 0 where nothing is."""
    if path.is_dir():
        return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
    return path.stat().st_size if path.is_file() else 0


class Meter(BaseCallback):
    """Measures every some iterations, between two iterations.

    Args:
        run: The run.
        every: Iterations between measurements.
        console: Where each measurement is shown.
    """

    def __init__(self, run: TrainingRun, every: int, console: Console) -> None:
        super().__init__()
        self.run = run
        self.every = every
        self.console = console
        self.measurements: list[Measurement] = []
        self._seen, self._since = 0, time.perf_counter()

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        self.measure()

    def _on_training_end(self) -> None:
        self.measure()

    def measure(self) -> None:
        """Measures, where it is time."""
        iteration = self.run.callback.iteration
        if iteration == self._seen or iteration % self.every:
            return
        gc.collect()
        seconds = (time.perf_counter() - self._since) / (iteration - self._seen)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        now = Measurement(
            iteration,
            pages * os.sysconf("SC_PAGE_SIZE") / 1e6,
            len(os.listdir("/proc/self/fd")) - 1,  # the listing itself has one open
            len(os.listdir("/proc/self/task")),
            len(gc.get_objects()),
            seconds,
            *(size_of(self.run.folder.path / name) for name in FILES),
        )
        self.measurements.append(now)
        self.console.print(
            f"iteration {iteration}: {now.megabytes:.1f} MB, {now.seconds * 1000:.0f} ms", highlight=False
        )
        self._seen, self._since = iteration, time.perf_counter()


def tiny_model(folder: Path) -> str:
    """Saves a random model of some thousand weights, with the embedded default's tokenizer; returns the folder's name."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=4,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    with quiet_loading():
        LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(DEFAULT_MODEL).save_pretrained(folder)
    return str(folder)


def soak(folder: Path, iterations: int, every: int, console: Console, algo: str = "ppo") -> list[Measurement]:
    """Trains for a number of iterations.

    Args:
        folder: A new or empty folder, for the model and the run.
        iterations: Number of iterations.
        every: Iterations between measurements, and between checkpoints, evaluations and samples.
        console: Where measurements are shown.
        algo: The algorithm; its iteration must be one rollout.

    Returns:
        The measurements, oldest first; those so far where Ctrl-C or SIGTERM ended the run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    prompts = folder / "prompts.txt"
    prompts.write_text("".join(f"Number {i}:\n" for i in range(50)), encoding="utf-8")
    settings = RunSettings(
        task=TaskOptions(
            model=tiny_model(folder / "model"),
            reward_model=(DEFAULT_GOLD,),
            prompts=str(prompts),
            max_new_tokens=4,
            max_prompt_length=8,
        ),
        algorithm=AlgorithmSettings(algo=algo, learning_rate=1e-4),
        training=TrainingSettings(total_timesteps=4 * 4 * iterations, n_envs=4),
        folder=FolderSettings(
            checkpoint_every=every, sample_every=every, eval_every=every, n_samples=2, n_eval=4, gold=DEFAULT_GOLD
        ),
    ).checked()
    run = TrainingRun(settings, folder / "run", PlainConsole(quiet=True))
    meter = Meter(run, every, console)
    run.callbacks.append(meter)
    with contextlib.suppress(Interrupted):
        run.train()
    return meter.measurements


def growth(measurements: Sequence[Measurement], name: str) -> tuple[float, float]:
    """How a quantity grows after the warm-up, by a straight line through it.

    Args:
        measurements: Of a whole run.
        name: A field of `Measurement`.

    Returns:
        (increase per 1,000 iterations; increase over all of them as a share of the value at their start).
    """
    settled = measurements[int(len(measurements) * WARM_UP) :]
    x = np.array([m.iteration for m in settled], dtype=float)
    y = np.array([getattr(m, name) for m in settled], dtype=float)
    slope, start = np.polyfit(x - x[0], y, 1)
    return 1000 * float(slope), float(slope * (x[-1] - x[0]) / max(start, 1e-12))


def verdict(measurements: Sequence[Measurement]) -> list[str]:
    """What grows that should not, a line each; empty where all is well."""
    settled = measurements[int(len(measurements) * WARM_UP) :]
    faults = []
    for name in ("handles", "threads"):
        if len({getattr(m, name) for m in settled}) > 1:
            faults.append(f"{name}: {getattr(settled[0], name)} became {getattr(settled[-1], name)}")
    for name in ("megabytes", "objects"):
        slope, share = growth(measurements, name)
        if share > MOST_GROWTH:
            faults.append(f"{name}: {slope:+.3g} per 1,000 iterations, {share:.1%} over the run")
    third = len(measurements) // 3
    middle, last = measurements[third : 2 * third], measurements[2 * third :]
    # Bytes that an iteration adds: a file that is linear adds the same in each part of the run.
    for name in ("progress", "samples", "tensorboard", "command"):
        first_rate, last_rate = (
            (getattr(part[-1], name) - getattr(part[0], name)) / (part[-1].iteration - part[0].iteration)
            for part in (middle, last)
        )
        if last_rate > 1.1 * first_rate:
            faults.append(f"{name}: {first_rate:.0f} bytes an iteration became {last_rate:.0f}")
    return faults


def slowdown(measurements: Sequence[Measurement]) -> float:
    """How many times as long an iteration takes in the last third as in the third before, by medians."""
    third = len(measurements) // 3
    middle, last = measurements[third : 2 * third], measurements[2 * third :]
    return float(np.median([m.seconds for m in last]) / np.median([m.seconds for m in middle]))


def main(argv: Sequence[str]) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output-dir", type=Path, required=True, help="a new or empty folder")
    parser.add_argument("--iterations", type=int, default=3000, help="at least 9 times --every (default: 3000)")
    parser.add_argument("--every", type=int, default=100, help="iterations between measurements (default: 100)")
    parser.add_argument("--algo", default="ppo", help="the algorithm (default: ppo)")
    args = parser.parse_args(argv)
    if args.every < 1 or args.iterations < 9 * args.every:
        parser.error(
            f"--iterations {args.iterations} must be at least 9 times --every {args.every}, which is at least 1."
        )
    console = PlainConsole()
    measurements = soak(args.output_dir, args.iterations, args.every, console, args.algo)
    table = Table(*(field.name for field in fields(Measurement)))
    for m in measurements[:: max(1, len(measurements) // 10)]:
        table.add_row(*(f"{v:.4g}" if isinstance(v, float) else f"{v:,}" for v in vars(m).values()))
    console.print(table)
    for name in ("megabytes", "handles", "threads", "objects"):
        slope, share = growth(measurements, name)
        console.print(f"{name}: {slope:+.4g} per 1,000 iterations ({share:+.2%} over the run)", highlight=False)
    faults, slower = verdict(measurements), slowdown(measurements)
    if slower > MOST_SLOWDOWN:
        faults.append(f"an iteration takes {slower:.2f} times as long as before")
    console.print("\n".join(faults) or "Nothing grows but the log, and that by the same number of bytes an iteration.")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
