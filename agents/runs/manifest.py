"""What a run began with, ``run.json``: settings and checksums of its prompts, so that it cannot go on with others unnoticed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from agents.checksums import checksum
from agents.files import write_json
from agents.flat_settings import to_flat
from agents.runs.prompts import HELD_OUT_FILE, TRAIN_FILE
from agents.runs.settings import CHANGEABLE, RunSettings

MANIFEST = "run.json"


def write_manifest(folder: Path, settings: RunSettings) -> None:
    """Writes ``run.json``, once the run's prompts are in its folder."""
    files = {name: checksum(folder / name) for name in (TRAIN_FILE, HELD_OUT_FILE) if (folder / name).is_file()}
    write_json(folder / MANIFEST, {"settings": to_flat(settings), "files": files})


def check_manifest(folder: Path, settings: RunSettings) -> None:
    """Refuses to go on with other settings or prompts than the run began with.

    Args:
        folder: The run's folder. One of an earlier version has no ``run.json``, and nothing is compared.
        settings: The settings to go on with.

    Raises:
        ValueError: a setting differs, or a file does or is missing; it is named.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return
    try:
        began = json.loads(path.read_text(encoding="utf-8"))
        before, files = dict(began["settings"]), dict(began["files"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged, which says what the run began with. {_again(folder)}") from error
    # Read back from JSON, so that both sides have lists where the settings have tuples. A setting that this version
    # added has its default, as it had when the run began.
    now: dict[str, Any] = json.loads(json.dumps(to_flat(settings)))
    changed = [k for k, v in now.items() if k in before and k not in CHANGEABLE and v != before[k]]
    if changed:
        what = ", ".join(f"{name}={now[name]!r} (it began with {before[name]!r})" for name in changed[:3])
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise ValueError(
            f"{folder / 'config.yaml'} was changed after the run began: {what}{more}. Put it back, or start another run: "
            "--config and a new --output-dir."
        )
    for name, expected in files.items():
        if not (folder / name).is_file():
            raise ValueError(f"{folder / name} is missing, which the run trains on or holds out. {_again(folder)}")
        if checksum(folder / name) != expected:
            raise ValueError(f"{folder / name} was changed after the run began. {_again(folder)}")


def _again(folder: Path) -> str:
    return f"Put it back, or start another run: --config {folder / 'config.yaml'} and a new --output-dir."
