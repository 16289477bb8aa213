"""A run's folder is data: nothing is imported from it, whatever its config.yaml names and wherever the command is started."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType


class _Refusal:
    """An entry of `sys.meta_path` that finds no module, and refuses those that lie in a folder.

    Args:
        folder: The folder, as an absolute path without links.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Looks where a module is; returns None, so that Python's own way of finding it goes on.

        Raises:
            ImportError: it is in the folder.
        """
        spec = PathFinder.find_spec(name, path, target)
        if spec is None:
            return None
        # A folder without code in it has no origin; modules below it are found, and refused, by themselves.
        if spec.origin is not None and Path(spec.origin).resolve().is_relative_to(self.folder):
            raise ImportError(
                f"{name} lies in the run's folder {self.folder}, from which a resumed run imports nothing"
            )
        return None


def import_nothing_from(folder: Path) -> None:
    """Makes this process refuse to import modules that lie in a folder, from now on.

    Somebody else's run can be resumed, and its ``config.yaml`` may name a function of a file beside it. The current folder is
    searched for functions, and it may be that folder, or one above it.

    Args:
        folder: The folder of a run.
    """
    refusal = _Refusal(folder.resolve())
    if not any(isinstance(entry, _Refusal) and entry.folder == refusal.folder for entry in sys.meta_path):
        sys.meta_path.insert(0, refusal)  # type: ignore[arg-type]
