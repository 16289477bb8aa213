"""Trials: a command runs into a fault, goes on as a user would go on, and its result is compared with an undisturbed one's."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agents.checksums import CHECKSUMS
from campaign.commands import Command, result_of
from campaign.faults import Fault, points_in

TIME_LIMIT = 300.0
"""Seconds after which a process counts as hung."""
HUNG = 9999
CHILD_SECONDS = 20.0
"""A stage's first seconds, most of which it imports."""
ATTEMPTS = 3
"""Attempts without a fault that a command may take after its faults: a full disk, or a signal, may end one more early."""


@dataclass(frozen=True)
class Outcome:
    """What became of a trial.

    Attributes:
        command: The command's title.
        kind: What happened to it: kinds of `Fault`, ``damage``, ``lock``.
        faults: The faults, for the record.
        equal: Whether the result equals the undisturbed one's.
        struck: Whether each fault happened, and did not come after the process had ended.
        problem: What is wrong: another result, a traceback, a hung process, several error lines.
        lines: The lines that the processes printed about it.
    """

    command: str
    kind: str
    faults: str
    equal: bool
    struck: bool
    problem: str
    lines: list[str]


def attempt(
    command: Command,
    folder: Path,
    log: Path,
    fault: Fault | None = None,
    usual: float = 0.0,
    record: Path | None = None,
) -> int:
    """Runs a command in a child process, which has everything imported already.

    Args:
        command: The command.
        folder: Its output folder.
        log: Where its output goes.
        fault: The fault that befalls it.
        usual: Seconds that it takes undisturbed, for a fault at a moment.
        record: Where labels of points go; see `points_in`.

    Returns:
        Its exit status; -N where signal N ended it, `HUNG` where it had to be ended.
    """
    child = os.fork()
    if child == 0:
        _in_child(command, folder, log, fault, record)
    started, status = time.monotonic(), None
    kill_after = fault.at * usual if fault is not None and fault.kind == "moment" else TIME_LIMIT
    while status is None:
        time.sleep(0.005)
        done, code = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(code)
        if time.monotonic() - started > kill_after:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return HUNG if kill_after == TIME_LIMIT else -signal.SIGKILL
    raise AssertionError


def _in_child(command: Command, folder: Path, log: Path, fault: Fault | None, record: Path | None) -> None:
    """Runs the command and ends this process, whatever happens."""
    status = 1
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
        points_in(folder, fault if fault is not None and fault.kind != "moment" else None, record)
        status = command.run(folder)
    except SystemExit as stop:
        status = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def undisturbed(command: Command, folder: Path) -> tuple[dict[str, str], list[str], float]:
    """Runs a command without a fault.

    Returns:
        Its result, the labels of its points, and its seconds.
    """
    record, log = folder.with_suffix(".points"), folder.with_suffix(".log")
    started = time.monotonic()
    status = attempt(command, folder, log, record=record)
    if status:
        raise RuntimeError(f"{command.title} ends with status {status} without any fault; see {log}.")
    return result_of(folder), record.read_text().splitlines(), time.monotonic() - started


def faulty(command: Command, faults: Sequence[Fault], folder: Path, expected: dict[str, str], usual: float) -> Outcome:
    """Runs a command into one fault after another, then to its end.

    Args:
        command: The command.
        faults: The fault of each attempt.
        folder: A new folder.
        expected: The result of the undisturbed command.
        usual: Its seconds.
    """
    log = folder.with_suffix(".log")
    statuses = [attempt(command, folder, log, fault, usual) for fault in faults]
    struck = all(status != 0 or fault.kind == "clock" for status, fault in zip(statuses, faults, strict=True))
    statuses += _to_the_end(command, folder, log)
    kind = " then ".join(fault.kind for fault in faults)
    return _outcome(command, kind, str([(f.kind, f.at) for f in faults]), folder, expected, statuses, struck)


def damaged(command: Command, whole: Path, file: str, how: str, folder: Path, expected: dict[str, str]) -> Outcome:
    """Damages a file of the newest checkpoint in a copy of an undisturbed folder, and has the command go on in it.

    Args:
        command: The command, of a kind that leaves checkpoints.
        whole: The undisturbed folder.
        file: The checkpoint's file.
        how: ``flipped`` (one bit in the middle), ``cut`` (to half), ``empty`` or ``missing``.
        folder: A new folder.
        expected: The result of the undisturbed command.
    """
    shutil.copytree(whole, folder)
    path = newest_checkpoint(folder) / file
    content = path.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes({"flipped": flipped, "cut": content[:middle], "empty": b""}[how])
    for name in ("actor", "reward_model"):  # as if the last process had been killed before it wrote this
        shutil.rmtree(folder / name, ignore_errors=True)
    log = folder.with_suffix(".log")
    statuses = _to_the_end(command, folder, log)
    noticed = "damaged" in log.read_text(encoding="utf-8")
    outcome = _outcome(command, "damage", f"{file} {how}", folder, expected, statuses, True)
    if noticed or outcome.problem:
        return outcome
    return Outcome(command.title, "damage", f"{file} {how}", False, True, "not noticed", outcome.lines)


def newest_checkpoint(folder: Path) -> Path:
    """The newest checkpoint in an output folder, of a run or of a supervised stage."""
    checkpoints = [
        p for p in (folder / "checkpoints").iterdir() if (p / CHECKSUMS).is_file() and "damaged" not in p.name
    ]
    return max(checkpoints, key=lambda p: int(p.name.replace("-", "_").rpartition("_")[2]))


def second_process(command: Command, folder: Path, expected: dict[str, str], usual: float) -> Outcome:
    """Starts a command again in the same folder while the first one runs: the second is refused, the first not disturbed."""
    log, other = folder.with_suffix(".log"), folder.with_suffix(".second.log")
    first = os.fork()
    if first == 0:
        _in_child(command, folder, log, None, None)
    deadline = time.monotonic() + max(usual, 1.0)
    while not (folder / "checkpoints").exists() and not _has_results(folder) and time.monotonic() < deadline:
        time.sleep(0.01)
    status = attempt(command, folder, other)
    # Where the first had ended meanwhile, there was nothing to refuse.
    first_ended = os.waitid(os.P_PID, first, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    _, code = os.waitpid(first, 0)
    outcome = _outcome(command, "lock", "a second process", folder, expected, [os.waitstatus_to_exitcode(code)], True)
    text = other.read_text(encoding="utf-8")
    # Its own words, or a stage's that had nothing on the disk yet to go on with.
    refused = status != 0 and text.count("error: ") == 1 and "Traceback" not in text
    ok = refused or (first_ended and status == 0)
    problem = outcome.problem or ("" if ok else f"the second process: status {status}")
    return Outcome(command.title, "lock", "", outcome.equal and ok, refused, problem, _lines(other))


def killed_alone(command: Command, whose: str, share: float, folder: Path, expected: dict[str, str]) -> Outcome:
    """Kills a pipeline's child alone, or the pipeline alone while its child lives on; then the same command is given again.

    Args:
        command: The pipeline.
        whose: ``child`` or ``parent``: who is killed.
        share: When, as a share of the first seconds of the child.
        folder: A new folder.
        expected: The result of the undisturbed command.
    """
    command = dataclasses.replace(command, children=True)
    log = folder.with_suffix(".log")
    parent = os.fork()
    if parent == 0:
        _in_child(command, folder, log, None, None)
    _child_of(parent)
    time.sleep(CHILD_SECONDS * share)
    killed = parent if whose == "parent" else _child_of(parent)
    with contextlib.suppress(ProcessLookupError):  # it may have ended meanwhile
        os.kill(killed, signal.SIGKILL)
    _, code = os.waitpid(parent, 0)
    statuses = [os.waitstatus_to_exitcode(code)]
    deadline = time.monotonic() + TIME_LIMIT
    while statuses[-1] != 0 and time.monotonic() < deadline:  # refused as long as the child lives
        statuses.append(attempt(command, folder, log))
    return _outcome(command, whose, f"after {share:.2f}", folder, expected, statuses, statuses[0] != 0)


def _child_of(parent: int) -> int:
    """Waits until a process has a child; returns the child's id, or the parent's where it has ended."""
    children = Path(f"/proc/{parent}/task/{parent}/children")
    while os.waitid(os.P_PID, parent, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if found := children.read_text().split():
            return int(found[0])
        time.sleep(0.002)
    return parent


def _has_results(folder: Path) -> bool:
    return folder.is_dir() and any(p.suffix in (".jsonl", ".csv") for p in folder.rglob("*"))


def _to_the_end(command: Command, folder: Path, log: Path) -> list[int]:
    """Runs the command until it ends well, at most some times; returns the statuses."""
    statuses: list[int] = []
    while len(statuses) < ATTEMPTS and (not statuses or statuses[-1] != 0):
        statuses.append(attempt(command, folder, log))
    return statuses


def _outcome(
    command: Command,
    kind: str,
    faults: str,
    folder: Path,
    expected: dict[str, str],
    statuses: Sequence[int],
    struck: bool,
) -> Outcome:
    """Compares the result, and looks for what a user must not see."""
    text = folder.with_suffix(".log").read_text(encoding="utf-8", errors="replace")
    result = result_of(folder) if folder.is_dir() else {}
    differing = sorted(k for k in {*result, *expected} if result.get(k) != expected.get(k))
    problem = ""
    if HUNG in statuses:
        problem = "a process hung"
    elif statuses[-1] != 0:
        problem = f"could not go on: status {statuses[-1]}"
    elif differing:
        problem = f"another result: {', '.join(differing[:4])}"
    elif "Traceback (most recent call last)" in text:
        problem = "a traceback"
    return Outcome(command.title, kind, faults, not differing, struck, problem, _lines(folder.with_suffix(".log")))


def _lines(log: Path) -> list[str]:
    """The lines of a log that say what happened."""
    words = ("error:", "note:", "Stopped", "Go on with")
    return [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.startswith(words)]
