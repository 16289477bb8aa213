"""Faults, and the points of a process where they can be put.

A *point* is one of the process's own steps, numbered from 0: it opens, renames or removes a file or folder inside the output
folder, it writes tensors there, or a phase of training begins. Python reports the first kind to audit hooks before they happen
(https://docs.python.org/3/library/audit_events.html), so a fault at point n+1 is one after step n. Nothing of this is in the
code that is tested.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from stable_baselines3.common.callbacks import BaseCallback
from torch.optim.optimizer import register_optimizer_step_pre_hook

FILE_EVENTS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir")
PHASE = "llm_env.phase"
KINDS = ("kill", "torn", "term", "int", "full", "clock", "moment")
"""kill: SIGKILL before the point. torn: SIGKILL while the file that the point opens is half-written. term, int: the signal.
full: from the point on the disk is full. clock: from the point on the clock is a day behind. moment: SIGKILL from outside,
after some share of the usual time."""


@dataclass(frozen=True)
class Fault:
    """A fault of one process.

    Attributes:
        kind: One of `KINDS`.
        at: Number of the point, or for ``moment`` the share of the usual time.
    """

    kind: str
    at: float


def points_in(folder: Path, fault: Fault | None, record: Path | None = None) -> None:
    """Puts a fault into this process; it stays until the process ends.

    Args:
        folder: The output folder, whose files' events count.
        fault: The fault; None: none.
        record: A file outside the folder that each point's label is written to, one a line.
    """
    watch = _Watch(str(folder.absolute()), fault, None if record is None else record.open("w", encoding="utf-8"))
    sys.addaudithook(watch.hook)
    _report_phases()


class _Watch:
    """Counts points, and lets the fault happen at its own."""

    def __init__(self, folder: str, fault: Fault | None, record: Any) -> None:
        self.folder, self.fault, self.record = folder, fault, record
        self.count = 0
        self.inside = False
        self.torn: tuple[str, int] | None = None
        self.full = False

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in FILE_EVENTS and event != PHASE:
            return
        path = arguments[0]
        if event != PHASE and not (isinstance(path, str | os.PathLike) and str(path).startswith(self.folder)):
            return
        if self.inside:  # what the fault itself does
            return
        self.inside = True
        try:
            self._point(event, str(path), _writes(event, arguments))
        finally:
            self.inside = False

    def _point(self, event: str, path: str, writes: bool) -> None:
        if self.torn is not None:
            _cut(*self.torn)
            os.kill(os.getpid(), signal.SIGKILL)
        if self.full and writes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        number, self.count = self.count, self.count + 1
        if self.record is not None:
            self.record.write(label(event, path) + ("\twrites" if writes else "") + "\n")
            self.record.flush()
        if self.fault is not None and number == self.fault.at:
            self._happen(self.fault.kind, path, writes)

    def _happen(self, kind: str, path: str, writes: bool) -> None:
        if kind == "torn" and writes:
            self.torn = (path, os.path.getsize(path) if os.path.isfile(path) else 0)
        elif kind in ("kill", "torn"):
            os.kill(os.getpid(), signal.SIGKILL)
        elif kind in ("term", "int"):
            os.kill(os.getpid(), signal.SIGTERM if kind == "term" else signal.SIGINT)
        elif kind == "clock":
            _set_clock_back(86_400.0)
        elif kind == "full":
            self.full = True
            if writes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)


def label(event: str, path: str) -> str:
    """Names a point, without the numbers in its file's name, so that points of one kind have one name."""
    name = path if event == PHASE else "/".join(Path(path).parts[-2:])
    return f"{event.removeprefix('os.').removeprefix('llm_env.')} {re.sub(r'[0-9]+', 'N', name)}"


def _writes(event: str, arguments: tuple[Any, ...]) -> bool:
    """Whether the step needs room on the disk."""
    if event != "open":
        return event == "os.mkdir"
    _, mode, flags = arguments
    return any(c in mode for c in "wax+") if isinstance(mode, str) else bool(flags & (os.O_WRONLY | os.O_RDWR))


def _cut(path: str, size_before: int) -> None:
    """Leaves half of what was written to a file since it was opened."""
    if os.path.isfile(path):
        size = os.path.getsize(path)
        os.truncate(path, size_before + (size - size_before) // 2 if size > size_before else size // 2)


def _set_clock_back(seconds: float) -> None:
    now, now_ns = time.time, time.time_ns
    time.time = lambda: now() - seconds
    time.time_ns = lambda: now_ns() - int(seconds * 1e9)


def _report_phases() -> None:
    """Makes rollouts, steps, updates and the writing of tensors points, by events of our own."""

    def before(owner: Any, name: str, phase: str) -> None:
        real: Callable[..., Any] = getattr(owner, name)

        def reported(*arguments: Any, **keywords: Any) -> Any:
            sys.audit(PHASE, phase)
            return real(*arguments, **keywords)

        setattr(owner, name, reported)

    for name, phase in (("on_rollout_start", "rollout"), ("on_step", "step"), ("on_rollout_end", "rollout ends")):
        before(BaseCallback, name, phase)
    register_optimizer_step_pre_hook(lambda *_: sys.audit(PHASE, "update"))
    # Tensors are written by Rust, which reports nothing; the modules below have the function under a name of their own.
    for module in [
        m for m in list(sys.modules.values()) if getattr(m, "save_file", None) is safetensors.torch.save_file
    ]:
        before(module, "save_file", "tensors")
