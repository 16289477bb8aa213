"""TRL in a virtual environment of its own, with the torch and transformers that run here."""

from __future__ import annotations

import subprocess
import venv
from pathlib import Path

import torch
import transformers


def peer_python(folder: Path, version: str, log_path: Path | None = None) -> Path:
    """The interpreter of an environment with a release of TRL, which is made where it is not there to the end.

    Args:
        folder: Folder of the environment.
        version: The release.
        log_path: File for what pip says; None: the terminal.

    Raises:
        subprocess.CalledProcessError: it cannot be installed.
    """
    python, complete = folder / "bin" / "python", folder / "complete"
    if complete.exists():
        return python
    venv.create(folder, clear=True, with_pip=True)
    log = None if log_path is None else log_path.open("w", encoding="utf-8")
    try:
        for packages in (
            [f"torch=={torch.__version__.partition('+')[0]}"],
            [f"trl=={version}", f"transformers=={transformers.__version__}"],
        ):
            subprocess.run([str(python), "-m", "pip", "install", "--quiet", *packages], check=True, stderr=log)
    finally:
        if log is not None:
            log.close()
    complete.touch()
    return python
