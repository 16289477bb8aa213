"""Calls of worlds: each slot's world lives in a thread of its own, calls run side by side, and each has a time limit."""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as OutOfTimeError
from dataclasses import replace
from queue import SimpleQueue
from typing import Any

from llm_env.reward.user_code import described, place_of_error
from llm_env.worlds.base import Answer, Fault, TextWorld, WorldError, reset_answer, step_answer

Job = tuple["Future[Answer]", Callable[[], Answer]]
CLOSING_SECONDS = 5.0
"""How long worlds that are parted with are waited for until they are closed, all of them together."""


class WorldNotMadeError(WorldError, ValueError):
    """A world could not be made: a fault of the settings, which no further episode would be without."""


class _Home:
    """A thread and the world that lives in it: made there, and called nowhere else.

    Args:
        make: Makes the world.
        name: The world, as error messages call it.
    """

    def __init__(self, make: Callable[[], TextWorld], name: str) -> None:
        self._make = make
        self._name = name
        self._world: TextWorld | None = None
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        # A daemon: a world that hangs must not keep the process from its end.
        self._thread = threading.Thread(target=self._work, daemon=True, name=name)
        self._thread.start()

    def submit(self, call: Callable[[], Answer]) -> Future[Answer]:
        """Has a function called in the thread."""
        future: Future[Answer] = Future()
        self._jobs.put((future, call))
        return future

    def make(self) -> Answer:
        """Makes the world where there is none yet; to be called in the thread."""
        if self._world is None:
            try:
                self._world = self._make()
            except WorldError as error:
                raise WorldNotMadeError(str(error)) from error
        return Answer("")

    def reset(self, seed: int, row: dict[str, Any] | None) -> Answer:
        """Resets the world, which is made first where there is none; to be called in the thread."""
        self.make()
        assert self._world is not None
        options = {} if row is None else {"options": {"row": row}}
        answer = reset_answer(self._name, self._world.reset(seed=seed, **options))
        return replace(answer, tools=self.tools)

    def step(self, turn: str | dict[str, Any]) -> Answer:
        """Hands the world a turn; to be called in the thread."""
        assert self._world is not None
        return step_answer(self._name, self._world.step(turn))

    @property
    def tools(self) -> list[dict[str, Any]] | None:
        """Schemas of the tools of the world, which is made."""
        return getattr(self._world, "tools", None)

    @property
    def takes_messages(self) -> bool:
        """Whether the world, which is made, takes turns as chat messages."""
        return bool(getattr(self._world, "takes_messages", False))

    def leave(self) -> None:
        """Ends the thread when it has done what it was given; the world is closed."""
        self._jobs.put(None)

    def wait(self, seconds: float) -> None:
        """Waits until the thread has ended, and the world is closed, but no longer than that."""
        if self._thread is not threading.current_thread():  # which may happen to collect what nobody needs
            self._thread.join(seconds)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            future, call = job
            try:
                future.set_result(call())
            except BaseException as error:  # SystemExit too: the thread would end without a word
                future.set_exception(error)
        close = getattr(self._world, "close", None)
        if callable(close):
            with contextlib.suppress(Exception):  # nobody is left to whom it would matter
                close()


def _leave_all(homes: list[_Home | None]) -> None:
    """Parts with worlds and has them closed: a process that ends right after this would not let them end."""
    here = [home for home in homes if home is not None]
    for home in here:
        home.leave()
    deadline = time.monotonic() + CLOSING_SECONDS
    for home in here:
        home.wait(max(0.0, deadline - time.monotonic()))


class Call:
    """A call of a world that is under way.

    Args:
        future: Its result.
        deadline: When it must be there, on `time.monotonic`'s clock.
    """

    def __init__(self, future: Future[Answer], deadline: float) -> None:
        self.future = future
        self.deadline = deadline


class WorldCalls:
    """The worlds of N slots, and calls of them.

    Args:
        make: Makes a world.
        name: The world, as error messages call it.
        n_slots: Number of slots N.
        timeout: Seconds that one call may take.

    Attributes:
        takes_messages: Whether the worlds take turns as chat messages.
        tools: Schemas of the worlds' tools.

    Raises:
        WorldNotMadeError: the first world could not be made.
    """

    def __init__(self, make: Callable[[], TextWorld], name: str, n_slots: int, timeout: float) -> None:
        self._make = make
        self._name = name
        self.timeout = timeout
        self._homes: list[_Home | None] = [None] * n_slots
        # Threads wait for work as long as they are not told otherwise: also where nobody closes the environment.
        weakref.finalize(self, _leave_all, self._homes)
        # One of them now, so that a world that cannot be made is known before anything is done with the others.
        first = self._homes[0] = _Home(make, name)
        fault = self.wait(0, self._call(first, first.make))
        if isinstance(fault, Fault):
            raise WorldNotMadeError(f"{fault.message}; it was to be made.")
        self.takes_messages, self.tools = first.takes_messages, first.tools

    def reset(self, slot: int, seed: int, row: dict[str, Any] | None) -> Call:
        """Begins to reset a slot's world.

        Args:
            slot: Index of the slot.
            seed: Seed of the world's episode.
            row: The record of the prompt; None where there are no prompts.
        """
        home = self._homes[slot]
        if home is None:
            home = self._homes[slot] = _Home(self._make, self._name)
        return self._call(home, lambda: home.reset(seed, row))

    def step(self, slot: int, turn: str | dict[str, Any]) -> Call:
        """Begins to hand a slot's world a turn: a text, or a chat message where it `takes_messages`."""
        home = self._homes[slot]
        assert home is not None, "a world is reset before it is given a turn"
        return self._call(home, lambda: home.step(turn))

    def _call(self, home: _Home, call: Callable[[], Answer]) -> Call:
        return Call(home.submit(call), time.monotonic() + self.timeout)

    def wait(self, slot: int, call: Call) -> Answer | Fault:
        """The answer to a call, or why there is none: then the slot's next episode has a new world.

        Raises:
            WorldNotMadeError: the world could not be made.
        """
        try:
            return call.future.result(max(0.0, call.deadline - time.monotonic()))
        except WorldNotMadeError:
            raise
        except OutOfTimeError as error:
            if call.future.done():  # the world's own error of that name
                fault = Fault("world_error", f"{self._name} raised {described(error)}{place_of_error(error)}")
            else:
                fault = Fault("world_timeout", f"{self._name} did not answer within {self.timeout:g} s (world_timeout)")
        except WorldError as error:
            fault = Fault("world_error", str(error).rstrip("."))
        except (Exception, SystemExit) as error:
            fault = Fault("world_error", f"{self._name} raised {described(error)}{place_of_error(error)}")
        self.drop(slot)
        return fault

    def drop(self, slot: int) -> None:
        """Parts with a slot's world; one that hangs is left to itself in its thread."""
        home, self._homes[slot] = self._homes[slot], None
        if home is not None:
            home.leave()

    def close(self) -> None:
        """Parts with all worlds, and waits until they are closed, at most `CLOSING_SECONDS`."""
        homes = list(self._homes)
        self._homes[:] = [None] * len(homes)
        _leave_all(homes)
