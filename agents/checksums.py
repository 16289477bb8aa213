"""Checksums of a folder's files, ``checksums.json``, by which damage is found before anything of them is used."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

CHECKSUMS = "checksums.json"


def checksum(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_checksums(folder: Path) -> None:
    """Writes ``checksums.json``, which names each file of a folder and its checksum."""
    sums = {path.name: checksum(path) for path in sorted(folder.iterdir()) if path.is_file()}
    (folder / CHECKSUMS).write_text(json.dumps(sums, indent=1) + "\n", encoding="utf-8")


def damaged_file(folder: Path) -> str | None:
    """Says which file of a folder is not as it was when its checksums were written; None where each is, or there are none."""
    if not (folder / CHECKSUMS).is_file():
        return None
    try:
        sums = read_object(folder / CHECKSUMS)
    except ValueError as error:
        return str(error)
    for name, expected in sums.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if checksum(folder / name) != expected:
            return f"{name} is not what was written ({CHECKSUMS})"
    return None


def set_aside(folder: Path) -> Path:
    """Renames a damaged folder to ``damaged_…``, so that it is not taken for a whole one again; returns its new path."""
    aside = folder.with_name(f"damaged_{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)
    return folder.rename(aside)


def newest_whole(
    folders: Sequence[Path], damage: Callable[[Path], str | None], say: Callable[[str], None]
) -> Path | None:
    """The last of some folders that is whole; damaged ones behind it are set aside, so that they are not counted again.

    Args:
        folders: Checkpoints, oldest first.
        damage: Says what is wrong with one; None where each file is as it was written.
        say: Is told of each damaged one.
    """
    for folder in reversed(folders):
        if (reason := damage(folder)) is None:
            return folder
        before = "; the one before it is next" if folder != folders[0] else ""
        say(f"note: {folder} is damaged: {reason}. It is {set_aside(folder).name} now{before}.")
    return None


def read_object(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        ValueError: the file is none; its name is said.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # UnicodeDecodeError is one too
        raise ValueError(f"{path.name} is not JSON") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path.name} is no JSON object")
    return value
