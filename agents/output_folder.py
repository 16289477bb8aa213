"""The folder that a command writes to: whether it can be, whether it is free, and that one process at a time writes there."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

LOCK_FILE = ".llm-env.lock"
"""Stands in each folder that a command of ours writes to; it is empty, and stays when the command has ended."""


@contextlib.contextmanager
def locked(folder: Path, option: str = "output_dir") -> Iterator[None]:
    """Keeps other processes from writing to a folder, which is made if need be, during a `with` block.

    The system gives the lock back when this process ends, however it ends.

    Args:
        folder: Where the command writes; made with the folders above it.
        option: The option that named it, for the error message.

    Raises:
        FileExistsError: another process holds the lock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK_FILE)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise FileExistsError(
            f"{option}={str(folder)!r}: another process is writing there. Wait until it has ended, or choose another folder."
        ) from None
    try:
        yield
    finally:
        lock.release()


def empty_folder(folder: Path) -> None:
    """Removes a folder's files and folders, but for the lock file, by which processes would miss each other if it went.

    Raises:
        FileExistsError: another process is writing there.
    """
    with locked(folder):
        for path in folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != LOCK_FILE:
                path.unlink()


def has_files(folder: Path) -> bool:
    """Whether a folder is there and has files, itself or in folders in it; lock files and empty folders do not count."""
    return folder.is_dir() and any(not path.is_dir() and path.name != LOCK_FILE for path in folder.rglob("*"))


def check_output_folder(folder: Path, option: str = "output_dir") -> None:
    """Refuses a folder that cannot be made or written to; nothing is made yet.

    Args:
        folder: The folder, which need not exist.
        option: The option that named it, for the error message.

    Raises:
        NotADirectoryError: it, or what it lies in, is a file.
        PermissionError: this user may not write there.
    """
    existing = folder.absolute()
    if "\0" in str(existing):  # `exists` says no, and what makes the folder fails later
        raise NotADirectoryError(f"{option}={str(folder)!r:.80} can be no folder: a name has no NUL in it.")
    try:
        while not existing.exists() and not existing.is_symlink():
            existing = existing.parent
    except OSError as error:  # a name that is too long
        raise NotADirectoryError(
            f"{option}={str(folder)!r:.80} can be no folder ({error}). Choose another name."
        ) from error
    if not existing.is_dir():
        raise NotADirectoryError(
            f"{option}={str(folder)!r}: {existing} is a file, or a link to nothing. Name a folder."
        )
    if not os.access(existing, os.W_OK):
        raise PermissionError(f"{option}={str(folder)!r}: {existing} may not be written to. Choose another folder.")


def check_output_file(option: str, path: Path) -> None:
    """Refuses a file that cannot be written, before the work whose results it gets.

    Args:
        option: The option that named it, for the error message.
        path: Where the results will be written; neither it nor its folder need exist.

    Raises:
        IsADirectoryError: it is a folder.
        NotADirectoryError, PermissionError: as `check_output_folder`.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{option}={str(path)!r} is a folder. Name a file.")
    check_output_folder(path.parent, option)
