"""A training run for a caller in the same program, in this process or in several."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from agents.flat_settings import to_words
from agents.processes import ProcessSettings, launch
from agents.runs.run import TrainingRun
from agents.runs.settings import RunSettings


def train_run(settings: RunSettings, folder: Path, console: Console, resume: bool, together: ProcessSettings) -> None:
    """Trains to the end; see `TrainingRun`.

    Args:
        settings: The run's settings, checked.
        folder: Folder of the run.
        console: Terminal that progress is printed on.
        resume: Go on with the run in `folder`.
        together: How many processes train.

    Raises:
        ChildProcessError: a process failed, and has said why.
    """
    if not together.starts_processes:
        TrainingRun(settings, folder, console, resume=resume).train()
        return
    where = ["--resume", str(folder)] if resume else ["--output-dir", str(folder), *to_words(settings)]
    words = [*where, *to_words(together_only(together))]
    status = launch("train", words, together.processes, "scripts/train.py")  # as another command has begun it
    if status == 130:
        raise KeyboardInterrupt
    if status:
        raise ChildProcessError(f"train in {together.processes} processes ended with status {status}.")


def together_only(settings: ProcessSettings) -> ProcessSettings:
    """The part of a stage's settings that says how many processes there are."""
    return ProcessSettings(processes=settings.processes, rank_timeout=settings.rank_timeout)
