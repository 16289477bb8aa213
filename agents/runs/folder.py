"""The folder of a training run: which files it has, how it is begun, and how a resumed run goes back to a checkpoint.

RUN/config.yaml           every setting, with the values used
RUN/command.txt           the command line that started it (one line for each time it was resumed)
RUN/versions.json         Python, packages, platform
RUN/run.json              what the run began with, to compare with when it goes on
RUN/train_prompts.jsonl   with a prompt file of the user's: the prompts that are trained on
RUN/heldout_prompts.jsonl with a prompt file of the user's: the prompts that are held out for samples and evaluation
RUN/progress.csv          one row an iteration
RUN/tensorboard/          the same for TensorBoard
RUN/reports.json          with --report-to: the run's ids in the services that are told of it
RUN/samples.jsonl         prompt, response, score, KL and tokens at the start, during the run and at the end
RUN/report.png            score, KL, entropy, length
RUN/report.html           curves, samples over time, settings: a page that loads nothing
RUN/checkpoints/          the newest two, complete
RUN/best/                 the actor of the best evaluation, with eval_every
RUN/actor/                the model, for from_pretrained, with its model card; ending.json: which alarm ended the run
RUN/adapter/              with LoRA: the adapters alone, for PEFT
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from agents.checksums import newest_whole, read_object
from agents.figures import can_draw
from agents.files import original_name, replacing, replacing_folder, write_json
from agents.flat_settings import write_settings
from agents.output_folder import LOCK_FILE, check_output_folder
from agents.runs.card import model_card
from agents.runs.checkpoint import CheckpointError, damage, list_checkpoints
from agents.runs.csv_log import CsvRows
from agents.runs.ending import Ending
from agents.runs.figure import draw_report, read_progress
from agents.runs.manifest import MANIFEST, check_manifest, write_manifest
from agents.runs.prompts import HELD_OUT_FILE, TRAIN_FILE, RunPrompts
from agents.runs.settings import RunSettings
from llm_env import __version__

PACKAGES = ("llm-env", "torch", "transformers", "gymnasium", "stable-baselines3", "peft", "numpy", "tokenizers")


BEFORE_RESULTS = {
    LOCK_FILE, "config.yaml", "versions.json", MANIFEST, TRAIN_FILE, HELD_OUT_FILE, "command.txt", "samples.jsonl",
    "reports.json",
}  # fmt: skip
"""Files that a run has before its first iteration has ended; besides them `FOLDERS_BEFORE`."""
FOLDERS_BEFORE = frozenset(("tensorboard", "wandb", "checkpoints"))  # the last one empty


class RunFolder:
    """The files of one run.

    Args:
        path: The folder, which need not exist yet. A relative one is of the folder that is the current one now.
        resume: Whether a run in it goes on.

    Raises:
        FileExistsError: the folder has files, and `resume` is off.
        NotADirectoryError, PermissionError: there can be no such folder, or no file in it.
    """

    def __init__(self, path: Path, resume: bool) -> None:
        check_output_folder(path, "output_dir")
        self.path = path.absolute()
        self.resume = resume
        self.checkpoints = self.path / "checkpoints"
        self.progress = self.path / "progress.csv"
        self.samples = self.path / "samples.jsonl"
        if not resume:
            self._check_free(path)

    def _check_free(self, shown: Path) -> None:
        """Refuses a folder with files, except those of a run that stopped before its first result."""
        # A file that was being written when the run was killed counts as that file.
        names = {original_name(p.name) for p in self.path.iterdir()} if self.path.exists() else set()
        checkpoints = any(self.checkpoints.glob("step_*"))
        # The lock file says that the others are a run's; without it, one of these names may be a file of the user's.
        without_results = LOCK_FILE in names and names <= BEFORE_RESULTS | FOLDERS_BEFORE
        if names and (checkpoints or not without_results):
            raise FileExistsError(
                f"output_dir={str(shown)!r} is not empty. Choose another folder, or go on with the run in it: --resume {shown}"
            )

    def begin(self, settings: RunSettings, prompts: RunPrompts) -> None:
        """Writes what describes a new run: settings, versions, and the prompts where they were split.

        Raises:
            FileExistsError: the folder has got files in the meantime.
        """
        self._check_free(self.path)
        for name in BEFORE_RESULTS - {LOCK_FILE}:  # of a run that stopped before its first result
            (self.path / name).unlink(missing_ok=True)
        shutil.rmtree(self.path / "tensorboard", ignore_errors=True)
        # config.yaml comes last: a folder without it is no run yet, whenever this process is killed.
        write_json(self.path / "versions.json", versions())
        prompts.write(self.path)
        write_manifest(self.path, settings)
        write_settings(settings, self.path / "config.yaml")

    def check_resumable(self, settings: RunSettings) -> None:
        """Refuses to go on where something that the run needs was changed or is missing since it stopped.

        Args:
            settings: The settings to go on with.

        Raises:
            ValueError: settings, prompts or checkpoints; the file is named.
        """
        check_manifest(self.path, settings)
        count = max(0, self.progress.read_bytes().count(b"\n") - 1) if self.progress.is_file() else 0
        # The first checkpoint comes after the row of its iteration, so with more rows there was one.
        # A damaged one that was set aside counts: what it was saved at has been reached.
        had_one = count > settings.folder.checkpoint_every or any(self.checkpoints.glob("damaged_step_*"))
        if not list_checkpoints(self.checkpoints) and (had_one or (self.path / "actor").exists()):
            raise ValueError(
                f"{self.checkpoints} has no whole checkpoint, though the run has {count} iterations behind it. Put the "
                f"checkpoints back, or start another run: --config {self.path / 'config.yaml'} and a new --output-dir."
            )

    def note_command(self) -> None:
        """Adds this process's command line to ``command.txt``."""
        with (self.path / "command.txt").open("a", encoding="utf-8") as file:
            program, *words = sys.argv  # of `llm-env train` two words, which are no file
            start = program.split() if program.startswith("llm-env ") else [Path(sys.executable).name, program]
            file.write(shlex.join([*start, *words]) + "\n")

    def changed_versions(self) -> dict[str, tuple[str, str]]:
        """Python and packages that had other versions when the run began: (then, now) by their names."""
        path = self.path / "versions.json"
        try:
            began = read_object(path) if path.is_file() else {}
        except ValueError:  # it only informs
            began = {}
        now = versions()
        names = [name for name in ("python", *PACKAGES) if name in began and began[name] != now[name]]
        return {name: (str(began[name]), now[name]) for name in names}

    def newest_checkpoint(self, say: Callable[[str], None]) -> Path | None:
        """The checkpoint to go on from; None where the run stopped before its first.

        A damaged one is renamed, so that it is neither taken nor counted again, and the one before it is next.

        Args:
            say: Is told of each damaged checkpoint.

        Raises:
            CheckpointError: each checkpoint is damaged.
        """
        checkpoints = list_checkpoints(self.checkpoints)
        whole = newest_whole(checkpoints, damage, say)
        if whole is not None or not checkpoints:
            return whole
        raise CheckpointError(
            f"{self.checkpoints} has no whole checkpoint. Start another run: --config {self.path / 'config.yaml'} and a new "
            "--output-dir."
        )

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
            # A line without its end was being written when the run was killed. Not `splitlines`, which splits at U+2028 too.
            lines = self.samples.read_bytes().split(b"\n")[:-1]
            kept = [line for line in lines if _timestep(line) <= timestep]
            with replacing(self.samples) as partial:
                partial.write_bytes(b"".join(line + b"\n" for line in kept))

    def add_samples(self, records: Sequence[dict[str, Any]]) -> None:
        """Appends records to ``samples.jsonl``."""
        with self.samples.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)

    def has_samples(self, timestep: int) -> bool:
        """Whether ``samples.jsonl`` has samples of that timestep."""
        lines = self.samples.read_bytes().split(b"\n")[:-1] if self.samples.is_file() else []
        return any(_timestep(line) == timestep for line in lines)

    def save_model(self, name: str, save: Callable[[Path], None]) -> None:
        """Writes a model to a folder inside the run's; its files take their places when all of them are written.

        Args:
            name: The folder's name: ``actor``, ``adapter`` or ``best``.
            save: Writes the model to the folder that it is called with.
        """
        with replacing_folder(self.path / name) as partial:
            save(partial)

    def card(self, settings: RunSettings, library: str = "transformers", ending: Ending | None = None) -> str:
        """Gives the model card of the actor as it is now, or of an actor of before; see `model_card`."""
        progress = read_progress(self.progress) if self.progress.is_file() else {}
        lines = self.samples.read_bytes().split(b"\n")[:-1] if self.samples.is_file() else []
        samples = [json.loads(line) for line in lines]
        row = -1
        kept = None if ending is None else ending.kept
        if kept is not None:
            row = kept.iteration  # from 0: the rollout that this actor wrote
            samples = [sample for sample in samples if sample["timestep"] == kept.timestep]
        numbers = {name: float(values[row]) for name, values in progress.items() if len(values)}
        if kept is not None:
            numbers |= {
                name: kept.eval.get(name.removeprefix("eval/"), math.nan) for name in numbers if "eval/" in name
            }
        return model_card(settings, self.path.name, numbers, samples, __version__, library, ending)

    def draw(self, title: str) -> None:
        """Draws ``report.png`` from ``progress.csv``, if that has a row."""
        progress = read_progress(self.progress) if self.progress.is_file() else {}
        if progress and can_draw():
            draw_report(progress, self.path / "report.png", title)


def _timestep(line: bytes) -> float:
    """The timestep of a line of ``samples.jsonl``; -1 of one that is damaged, which is kept as it is."""
    try:
        return float(json.loads(line)["timestep"])
    except (ValueError, KeyError, TypeError):
        return -1.0


def versions() -> dict[str, str]:
    """Gives the versions of Python and of the packages that decide a run's results, and the platform."""
    numbers = {"python": platform.python_version(), "platform": platform.platform(), "cpus": str(os.cpu_count())}
    for package in PACKAGES:
        try:
            numbers[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            numbers[package] = "not installed"
    return numbers
