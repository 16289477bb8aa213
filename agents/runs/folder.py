"""The folder of a training run: which files it has, how it is begun, and how a resumed run goes back to a checkpoint.

RUN/config.yaml           every setting, with the values used
RUN/command.txt           the command line that started it (one line for each time it was resumed)
RUN/versions.json         Python, packages, platform
RUN/train_prompts.jsonl   with a prompt file of the user's: the prompts that are trained on
RUN/heldout_prompts.jsonl with a prompt file of the user's: the prompts that are held out for samples and evaluation
RUN/progress.csv          one row an iteration
RUN/tensorboard/          the same for TensorBoard
RUN/samples.jsonl         prompt, response, score, KL at the start, during the run and at the end
RUN/report.png            score, KL, entropy, length
RUN/checkpoints/          the newest two, complete
RUN/best/                 the actor of the best evaluation, with eval_every
RUN/actor/                the model, for from_pretrained
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from agents.figures import can_draw
from agents.files import write_json, write_text
from agents.flat_settings import write_settings
from agents.runs.checkpoint import list_checkpoints
from agents.runs.csv_log import CsvRows
from agents.runs.figure import draw_report, read_progress
from agents.runs.prompts import RunPrompts
from agents.runs.settings import RunSettings

PACKAGES = ("llm-env", "torch", "transformers", "gymnasium", "stable-baselines3", "peft", "numpy", "tokenizers")


class RunFolder:
    """The files of one run.

    Args:
        path: The folder, which need not exist yet.
        resume: Whether a run in it goes on.

    Raises:
        FileExistsError: the folder is not empty, and `resume` is off.
    """

    def __init__(self, path: Path, resume: bool) -> None:
        if not resume and path.exists() and any(path.iterdir()):
            raise FileExistsError(
                f"output_dir={str(path)!r} is not empty. Choose another folder, or go on with the run in it: --resume {path}"
            )
        self.path = path
        self.resume = resume
        self.checkpoints = path / "checkpoints"
        self.progress = path / "progress.csv"
        self.samples = path / "samples.jsonl"

    def begin(self, settings: RunSettings, prompts: RunPrompts) -> None:
        """Writes what describes a new run: settings, versions, and the prompts where they were split."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_settings(settings, self.path / "config.yaml")
        write_json(self.path / "versions.json", versions())
        prompts.write(self.path)

    def note_command(self) -> None:
        """Adds this process's command line to ``command.txt``."""
        with (self.path / "command.txt").open("a", encoding="utf-8") as file:
            file.write(shlex.join([Path(sys.executable).name, *sys.argv]) + "\n")

    def newest_checkpoint(self) -> Path | None:
        """The checkpoint to go on from; None where the run stopped before its first."""
        checkpoints = list_checkpoints(self.checkpoints)
        return checkpoints[-1] if checkpoints else None

    def drop_after(self, timestep: int, rows: CsvRows) -> None:
        """Forgets log rows and samples that were written after the checkpoint that the run goes back to.

        Args:
            timestep: The checkpoint's timestep; -1: the run starts over, so that nothing is kept.
            rows: The rows of ``progress.csv``.
        """
        rows.drop_after(timestep)
        if timestep < 0:
            self.samples.unlink(missing_ok=True)
        elif self.samples.is_file():
            lines = self.samples.read_text(encoding="utf-8").splitlines(keepends=True)
            # A line without its end was being written when the run was killed.
            kept = [x for x in lines if x.endswith("\n") and json.loads(x)["timestep"] <= timestep]
            write_text(self.samples, "".join(kept))

    def add_samples(self, records: Sequence[dict[str, Any]]) -> None:
        """Appends records to ``samples.jsonl``."""
        with self.samples.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)

    def save_model(self, name: str, save: Callable[[Path], None]) -> None:
        """Writes a model to a folder inside the run's; its files take their places when all of them are written.

        Args:
            name: The folder's name: ``actor`` or ``best``.
            save: Writes the model to the folder that it is called with.
        """
        # A folder that is there already (best/ of an earlier evaluation) keeps its name all the time: each file is replaced.
        partial = self.path / f".partial-{name}"
        shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed here
        save(partial)
        target = self.path / name
        if target.exists():
            for path in partial.iterdir():
                path.replace(target / path.name)
            partial.rmdir()
        else:
            partial.rename(target)

    def draw(self, title: str) -> None:
        """Draws ``report.png`` from ``progress.csv``, if that has a row."""
        progress = read_progress(self.progress) if self.progress.is_file() else {}
        if progress and can_draw():
            draw_report(progress, self.path / "report.png", title)


def versions() -> dict[str, str]:
    """Gives the versions of Python and of the packages that decide a run's results, and the platform."""
    numbers = {"python": platform.python_version(), "platform": platform.platform(), "cpus": str(os.cpu_count())}
    for package in PACKAGES:
        try:
            numbers[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            numbers[package] = "not installed"
    return numbers
