"""How the processes of one run start and end: ``--processes``, and one line where one of them fails.

`torchrun` starts the processes of a run, the *ranks*; ``--processes N`` does so with `torchrun`'s own machinery, on this
machine. Where one rank fails, its error is the run's, told in one line that names the rank; the others, which would wait for it
forever, end without a word. Reading this module imports no torch.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_env.lm.names import check_choice
from llm_env.rules import Rule, number, whole

RANK_TIMEOUT_S = 1800.0
LOST = 75
"""Exit status of a rank that ended because another one was lost."""
LAUNCHED = "LLM_ENV_LAUNCHED"
"""Environment variable of ranks that `launch` started, which itself says whose end was the first; it has the command's name."""
PATIENCE_S = 3600
"""How long ranks may go on after Ctrl-C, to end their iteration and write a checkpoint, in seconds."""
SHARDING = ("none", "full")
RULES: dict[str, Rule] = {"processes": whole(1), "rank_timeout": number(above=0)}


@dataclass(frozen=True, kw_only=True)
class ProcessSettings:
    """How many processes train together, which is no setting of the run: it may differ when the run goes on."""

    processes: int = 1
    """Processes on this machine that train together, each with its share of the work: one for each GPU, or for some CPU cores.
    For several machines start the command with torchrun (docs/scale.md)."""
    rank_timeout: float = RANK_TIMEOUT_S
    """Seconds that a process waits for the others before the run ends with an error. It must be longer than what one does
    alone: an evaluation, or writing a checkpoint."""

    def check_processes(self) -> None:
        """Checks the numbers.

        Raises:
            ValueError: one breaks its rule, or `processes` is given under `torchrun`, which says itself how many there are.
        """
        for name, rule in RULES.items():
            rule.check(name, getattr(self, name))
        if self.processes > 1 and under_torchrun() and not launched():
            raise ValueError(
                f"processes={self.processes}: torchrun has started the processes already. Leave --processes out."
            )

    @property
    def world(self) -> int:
        """How many processes there are, or are to be."""
        return int(os.environ["WORLD_SIZE"]) if under_torchrun() else self.processes

    @property
    def starts_processes(self) -> bool:
        """Whether the processes are still to be started."""
        return self.processes > 1 and not under_torchrun()


@dataclass(frozen=True, kw_only=True)
class RunProcesses(ProcessSettings):
    """The same for reinforcement learning, whose processes need not have all weights each."""

    sharding: str = "none"
    """none: each process has all weights, gradients and optimizer states. full: each has its part of them, by PyTorch's FSDP2,
    beside a whole copy that decodes (docs/scale.md)."""

    def check_processes(self) -> None:
        """Checks the numbers, and the sharding.

        Raises:
            ValueError: as `ProcessSettings.check_processes`; or there is nothing to share the weights with.
        """
        super().check_processes()
        check_choice("sharding", self.sharding, SHARDING)
        if self.sharding != "none" and self.world == 1:
            raise ValueError(
                f"sharding={self.sharding!r} shares the weights among several processes: --processes 2 or more."
            )


def check_divides(what: str, count: int, world: int, unit: int = 1) -> None:
    """Refuses a number that cannot be shared among processes alike.

    Args:
        what: Its name.
        count: The number.
        world: How many processes there are.
        unit: What must not be split: a group's slots.

    Raises:
        ValueError: it cannot.
    """
    if count % (world * unit):
        groups = f" x group_size={unit}" if unit > 1 else ""
        least = -(-count // (world * unit)) * world * unit
        raise ValueError(f"{what}={count} must be a multiple of the {world} processes{groups}: take {least}.")


def launched() -> bool:
    """Whether `launch` started this process."""
    return LAUNCHED in os.environ


def under_torchrun() -> bool:
    """Whether `torchrun` started this process, as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ and "MASTER_ADDR" in os.environ


def first_rank() -> bool:
    """Whether this process is the one that writes: rank 0, or the only one."""
    return not under_torchrun() or os.environ["RANK"] == "0"


# What a rank knows of the others.


@dataclass
class _Watched:
    rank: int
    store: Any
    peers: list[dict[str, Any]]
    """Host and process number of each rank, by rank."""


_watched: _Watched | None = None


def identity() -> dict[str, Any]:
    """Where this process is."""
    return {"host": socket.gethostname(), "pid": os.getpid()}


def watch(rank: int, store: Any, peers: list[dict[str, Any]]) -> None:
    """From now on this process ends, whatever it is waiting in, when the launcher has gone or ends it because of another rank.

    Python's own handlers wait until the main thread comes back from C code; this has a thread of its own.

    Args:
        rank: This process's rank.
        store: The run's key-value store.
        peers: `identity` of each rank.
    """
    global _watched
    _watched = _Watched(rank, store, peers)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reading, os.getppid()), daemon=True).start()


def _watch(signals: int, launcher: int) -> None:
    while True:
        ready, _, _ = select.select([signals], [], [], 1.0)
        came = os.read(signals, 64) if ready else b""
        # SIGTERM alone asks for a checkpoint first; but it is also how torchrun ends the others after one has failed.
        if os.getppid() != launcher or (signal.SIGTERM in came and (ranks_that_ended() or someone_failed())):
            if not launched() and (gone := ranks_that_ended()) and claim_failure():
                sys.stderr.write(f"error: rank {gone[0]} has ended: killed, out of memory, or crashed\n")
            end(128 + signal.SIGTERM)


def ranks_that_ended() -> list[int]:
    """The ranks on this machine whose processes have ended, as far as the system knows it already."""
    if _watched is None:
        return []
    here = socket.gethostname()
    return [r for r, peer in enumerate(_watched.peers) if peer["host"] == here and not _is_alive(int(peer["pid"]))]


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        # A process that has ended is still listed until its parent has asked for its status: Z, behind its name in brackets.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except ProcessLookupError:
        return False
    except (OSError, IndexError):  # it is another user's, or this system has no /proc
        return True


def someone_failed() -> bool:
    """Whether a rank has said that it failed."""
    try:
        return _watched is not None and _watched.store.add("failures", 0) > 0
    except RuntimeError:  # the store is gone, and with it the launcher
        return True


def claim_failure() -> bool:
    """Whether this rank is the one to say what went wrong: the first to ask."""
    if _watched is None:
        return True
    try:
        return bool(_watched.store.add("failures", 1) == 1)
    except RuntimeError:
        return False


def name_rank(message: str) -> str | None:
    """An error message with the rank in front; None where another rank has said already what went wrong."""
    if _watched is None:
        return message
    return f"rank {_watched.rank}: {message}" if claim_failure() else None


def wait_for_all(seconds: float = 5.0) -> None:
    """Waits some seconds for the other ranks to come here too, so that none is ended while it says its last words."""
    if _watched is None:
        return
    until = time.monotonic() + seconds
    try:
        _watched.store.add("ending", 1)
        while _watched.store.add("ending", 0) < len(_watched.peers) and time.monotonic() < until:
            time.sleep(0.05)
    except RuntimeError:  # the store is gone
        return


def end(status: int) -> None:
    """Ends this process at once, not through destructors that would wait for other ranks."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


# Starting.


def timeout_in(argv: Sequence[str]) -> float:
    """The value of ``--rank-timeout`` on a command line, which is read before the rest of it."""
    words = [word for argument in argv for word in argument.split("=", 1)]
    places = [i for i, word in enumerate(words[:-1]) if word.replace("_", "-") == "--rank-timeout"]
    try:
        return float(words[places[-1] + 1]) if places else RANK_TIMEOUT_S
    except ValueError:  # the command line is refused later
        return RANK_TIMEOUT_S


def launch(command: str, argv: Sequence[str], count: int, called: str | None = None) -> int:
    """Starts a command in several processes on this machine, and waits for their end.

    Args:
        command: The command's module in `agents.cli`.
        argv: Its command line.
        count: How many processes.
        called: What it is called with these words, for what it says and notes. None: as this process was.

    Returns:
        The exit status: 0 where all ended in order.
    """
    import logging

    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in [n for n in logging.root.manager.loggerDict if n.startswith("torch.distributed.elastic")]:
        logging.getLogger(name).setLevel(logging.CRITICAL)  # each has a level of its own; what there is to say, we say
    handlers = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)}
    os.environ[LAUNCHED] = called or sys.argv[0]
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        monitor_interval=0.1,
        shutdown_timeout=PATIENCE_S,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "agents.cli.start", command, *argv)
    except ChildFailedError as error:
        return _say_who_failed({rank: failure.exitcode for rank, failure in error.failures.items()})
    except SignalException as error:
        return 128 + int(error.sigval)
    finally:
        del os.environ[LAUNCHED]
        for number, handler in handlers.items():  # torchrun's stay otherwise
            signal.signal(number, handler)
    return 0


def _say_who_failed(statuses: dict[int, int]) -> int:
    """Names the rank whose end was the first, unless it did so itself; returns the exit status.

    Args:
        statuses: The exit status of each rank that failed by itself; below 0 the signal that killed it.
    """
    for rank, status in statuses.items():
        if status < 0:
            name = signal.Signals(-status).name
            hint = "; if nobody sent it, memory ran out" if -status == signal.SIGKILL else ""
            sys.stderr.write(f"error: rank {rank} was killed by signal {-status} ({name}{hint}).\n")
            return 1
    if set(statuses.values()) == {LOST}:
        sys.stderr.write(f"error: rank {min(statuses)} lost the connection to the other ranks.\n")
        return 1
    return 130 if 130 in statuses.values() else 1
