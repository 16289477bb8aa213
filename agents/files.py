"""Files and folders that are there whole or not at all: written under another name, then renamed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_PARTIAL = ".partial"


def original_name(name: str) -> str:
    """The name that a file gets when it is whole, of the name under which `replacing` writes it; other names as they are."""
    return name[1:].removesuffix(_PARTIAL) if name.startswith(".") and name.endswith(_PARTIAL) else name


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a path beside `path` to write to, and renames it to `path` at the end of a `with` block.

    Where the block raises, `path` is as it was and the partial file is removed. Folders on the way are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}{_PARTIAL}")
    try:
        yield partial
        flush(partial)  # else a power cut could leave an empty file under the new name
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """The same for a folder and its files: gives a folder to write to, whose files take their places at the end of the block.

    A folder that is there already keeps its name all the time: each of its files is replaced, and others stay.
    """
    partial = path.with_name(f".partial-{path.name}")
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed here
    partial.mkdir(parents=True)
    try:
        yield partial
        written = sorted(partial.rglob("*"))
        for file in written:
            flush(file)
        if path.exists():
            for file in written:  # a folder comes before what is in it
                target = path / file.relative_to(partial)
                if file.is_dir():
                    target.mkdir(exist_ok=True)
                else:
                    file.replace(target)
            shutil.rmtree(partial)
        else:
            partial.rename(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 text file, whole or not at all."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any, indent: int | None = 1) -> None:
    """Writes plain values as JSON with a newline at the end, whole or not at all."""
    write_text(path, json.dumps(value, indent=indent, ensure_ascii=False) + "\n")


def flush(path: Path) -> None:
    """Writes a file or folder to the disk, so that it is not only in the system's cache; Windows has no such call for these."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
