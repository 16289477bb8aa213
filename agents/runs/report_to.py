"""Where a run's numbers go beside `progress.csv`: TensorBoard, Weights & Biases, MLflow, Trackio (`--report-to`).

Each is a writer for SB3's logger, which is the one place where numbers are made. The services are told of a run by an id that
is kept in ``reports.json`` of its folder, so that a run that goes on goes on there too. Projects, servers and keys are what
the services' own environment variables say: ``WANDB_PROJECT``, ``WANDB_MODE``, ``MLFLOW_TRACKING_URI``, …
"""

from __future__ import annotations

import os
import re
import uuid
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.logger import KVWriter, TensorBoardOutputFormat

from agents.checksums import read_object
from agents.files import write_json
from agents.runs.settings import NO_REPORT, TENSORBOARD
from llm_env.extras import installed, require

IDS = "reports.json"
PROJECT = "llm-env"
"""The project, or experiment, where no environment variable names one."""


def check_installed(names: Sequence[str] | None) -> None:
    """Refuses a service whose package is not installed, before anything is loaded or written.

    Args:
        names: `report_to` of the run's settings.

    Raises:
        ImportError: one is missing; names the line that installs it.
    """
    for name in names or ():
        if name == TENSORBOARD:
            require(TENSORBOARD, "plots")
        elif name != NO_REPORT:
            require(name, name)


def writers(names: Sequence[str] | None, folder: Path, settings: Mapping[str, Any]) -> list[KVWriter]:
    """Makes the writers of a run.

    Args:
        names: `report_to` of the run's settings. None: TensorBoard, where it is installed.
        folder: The run's folder.
        settings: The run's settings by name, which the services show.
    """
    if names is None:
        names = [TENSORBOARD]
        if not installed(TENSORBOARD):
            text = "tensorboard is not installed, so its log is left out: pip install 'llm-env[plots]'"
            warnings.warn(text, stacklevel=2)
            names = []
    made: list[KVWriter] = []
    for name in names:
        if name == TENSORBOARD:
            made.append(TensorBoardOutputFormat(str(folder / TENSORBOARD)))
        elif name != NO_REPORT:
            made.append(WRITERS[name](folder, settings))
    return made


class Service(KVWriter, ABC):
    """A writer that sends each row's numbers to a service.

    Args:
        folder: The run's folder; its name is the run's name there.
        settings: The run's settings by name.
    """

    name = ""
    """What `report_to` calls it: its package."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.package = require(self.name, self.name)
        self._ids = folder / IDS
        self.begin(folder, settings)

    @abstractmethod
    def begin(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """Begins the run there, or goes on with it."""

    @abstractmethod
    def send(self, values: dict[str, float], step: int) -> None:
        """Sends a row."""

    def known_id(self) -> str | None:
        """The id that the service knows this run by; None: it does not yet."""
        ids = read_object(self._ids) if self._ids.is_file() else {}
        return str(ids[self.name]) if self.name in ids else None

    def keep_id(self, run: str) -> None:
        """Keeps the id for when the run goes on."""
        ids = read_object(self._ids) if self._ids.is_file() else {}
        write_json(self._ids, {**ids, self.name: run})

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Sends a row's numbers; the arguments are SB3's."""
        numbers = {
            name: float(value)
            for name, value in key_values.items()
            if isinstance(value, int | float | np.number) and self.name not in (key_excluded.get(name) or ())
        }
        self.send(numbers, step)

    @abstractmethod
    def close(self) -> None:
        """Ends the connection, when all has been sent."""


class WandbRows(Service):
    """Weights & Biases."""

    name = "wandb"

    def begin(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """See `Service.begin`."""
        known = self.known_id() or uuid.uuid4().hex
        self.keep_id(known)
        self.run = self.package.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=folder.name,
            id=known,
            resume="allow",
            dir=str(folder),
            config=dict(settings),
        )

    def send(self, values: dict[str, float], step: int) -> None:
        """See `Service.send`."""
        self.run.log(values, step=step)

    def close(self) -> None:
        """See `Service.close`."""
        self.run.finish()


class TrackioRows(WandbRows):
    """Trackio, whose runs are told as Weights & Biases' are; it keeps numbers on this machine unless a Space is named."""

    name = "trackio"

    def begin(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """See `Service.begin`."""
        known = self.known_id() or f"{folder.name}-{uuid.uuid4().hex[:8]}"
        self.keep_id(known)
        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        plain = {name: value if value is None else str(value) for name, value in settings.items()}
        self.run = self.package.init(project=project, name=known, resume="allow", config=plain)


class MlflowRows(Service):
    """MLflow."""

    name = "mlflow"

    def begin(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """See `Service.begin`."""
        known = self.known_id()
        if "MLFLOW_EXPERIMENT_NAME" not in os.environ and "MLFLOW_EXPERIMENT_ID" not in os.environ:
            self.package.set_experiment(PROJECT)
        run = self.package.start_run(run_id=known, run_name=folder.name)
        if known is None:
            self.keep_id(run.info.run_id)
            self.package.log_params({name: str(value)[:500] for name, value in settings.items()})

    def send(self, values: dict[str, float], step: int) -> None:
        """See `Service.send`."""
        # Other characters are no names there.
        self.package.log_metrics({re.sub(r"[^\w/. :-]", "_", name): value for name, value in values.items()}, step=step)

    def close(self) -> None:
        """See `Service.close`."""
        self.package.end_run()


WRITERS: dict[str, type[Service]] = {kind.name: kind for kind in (WandbRows, MlflowRows, TrackioRows)}
"""The services by the names that `report_to` has for them."""
