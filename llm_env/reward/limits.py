"""Limits of a call to a reward function or server: how long it may take, and how long one that fails is asked again."""

from __future__ import annotations

import logging
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from llm_env.reward.scores import RewardModelError
from llm_env.rules import Rule, number

T = TypeVar("T")
logger = logging.getLogger(__name__)
SERVER_TIMEOUT = 60.0
"""Seconds that a request to a server may take."""
SERVER_WAIT = 600.0
"""Seconds for which a server that does not answer is asked again: time to start one that loads a large model."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0
"""Seconds between two attempts: the first pause, and what doubling it ends at."""
LIMIT_RULES: dict[str, Rule] = {"reward_timeout": number(above=0), "reward_wait": number(least=0)}
"""The rules of the settings that the limits come from, in seconds."""
AGAIN = 1.0
"""Seconds after which code that went on in spite of the interruption is interrupted again."""


@dataclass(frozen=True)
class CallLimits:
    """How long a call may take, and for how long one that fails is repeated.

    Attributes:
        timeout: Seconds that one call may take. None: `SERVER_TIMEOUT` for a server, no limit for a function.
        wait: Seconds for which a call that fails is repeated, with growing pauses. None: `SERVER_WAIT` for a server, 0 for a
            function.

    Raises:
        ValueError: one is no such number; the settings ``reward_timeout`` and ``reward_wait`` are named.
    """

    timeout: float | None = None
    wait: float | None = None

    def __post_init__(self) -> None:
        """Checks the numbers."""
        for name, rule in LIMIT_RULES.items():
            value = getattr(self, name.removeprefix("reward_"))
            if value is not None:
                rule.check(name, value)


class UnavailableError(Exception):
    """A call failed in a way that may pass.

    Args:
        message: What happened, with the name of what was called.
        retry_after: Seconds that the other side asks to be left alone for.
    """

    def __init__(self, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class OutOfTimeError(BaseException):
    """A call took longer than it may. No `Exception`, so that a handler in the code that was called lets it pass."""


def can_interrupt() -> bool:
    """Whether `call_within` works here: in the main thread, of a system that has interval timers."""
    return hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()


def call_within(seconds: float, call: Callable[[], T]) -> T:
    """Calls a function, and interrupts it where it takes too long.

    A timer's signal does that, and no second thread: code that is stuck in a regular expression holds the interpreter's lock,
    so that no other thread would learn of it, while a signal gets through; and what was stopped is over, not left running.

    Args:
        seconds: How long it may take, above 0.
        call: What is to be done, a function without arguments; it runs in this thread.

    Raises:
        OutOfTimeError: it took longer; the traceback ends where it was. Compiled code that neither returns nor looks for
            signals is not stopped, and nor is a function that sets an alarm of its own, which takes the place of this one.
    """
    armed, fired = True, False

    def interrupt(number: int, frame: object) -> None:
        nonlocal fired
        if armed:  # a signal that comes after the call's end does nothing
            fired = True
            raise OutOfTimeError

    started = time.monotonic()
    handler = signal.signal(signal.SIGALRM, interrupt)
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN)
    try:
        result = call()
    except Exception as error:
        if fired:  # the function made another error of the interruption
            raise OutOfTimeError from error
        raise
    finally:
        armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL if handler is None else handler)
        if left:  # somebody's alarm was set before
            signal.setitimer(signal.ITIMER_REAL, max(0.001, left - (time.monotonic() - started)), interval)
    if fired:  # the function swallowed the interruption, and came to an end later
        raise OutOfTimeError
    return result


def pauses() -> Iterator[float]:
    """Seconds to wait before each further attempt: doubled each time up to a limit, half of it drawn at random.

    The draws are the system's own: those of Python, NumPy and torch, which training repeats after a resume, stay as they are.
    """
    draw = random.SystemRandom()
    pause = FIRST_PAUSE
    while True:
        yield pause * draw.uniform(0.5, 1.0)
        pause = min(2 * pause, LONGEST_PAUSE)


class Outage:
    """Says in one line that something does not answer, and in one that it answers again, however many threads wait for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_told = False

    def begins(self, line: str) -> None:
        """Says that it is waited, unless that was said."""
        with self._lock:
            if not self._is_told:
                self._is_told = True
                logger.warning("%s", line)

    def ends(self, line: str) -> None:
        """Says that it goes on, unless that was said."""
        with self._lock:
            if self._is_told:
                self._is_told = False
                logger.warning("%s", line)


def ask_until_answered(attempt: Callable[[], T], wait: float, name: str, outage: Outage | None = None) -> T:
    """Repeats a call that fails until it succeeds; says in one line that it waits, and in one that it goes on.

    Args:
        attempt: The call; raises `UnavailableError` where asking again may help.
        wait: Seconds after the first failure at which the last attempt begins. 0: there is one attempt.
        name: What is called, for the line about going on.
        outage: Says these lines, where several threads call the same; None: one for this call alone.

    Raises:
        RewardModelError: the last attempt failed too.
    """
    outage = outage or Outage()
    began: float | None = None
    for pause in pauses():
        try:
            result = attempt()
        except UnavailableError as error:
            now = time.monotonic()
            if began is None:
                began = now
                if wait > 0:
                    outage.begins(f"{error}. It is asked again for up to {wait:g} s …")
            left = began + wait - now
            if left <= 0:
                tried = f" It was asked again for {wait:g} s (reward_wait)." if wait > 0 else ""
                raise RewardModelError(f"{error}.{tried}") from error
            time.sleep(min(left, max(pause, error.retry_after)))
        else:
            if began is not None:
                outage.ends(f"{name} answers again after {time.monotonic() - began:.0f} s; going on.")
            return result
    raise AssertionError  # `pauses` has no end
