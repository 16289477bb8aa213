"""Calls that wait for something else, several at once in threads; results come as they are ready."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")
_ENDED = -1


def side_by_side(
    call: Callable[[T, threading.Event], R], items: Sequence[T], workers: int, patience: float
) -> Iterator[tuple[int, R]]:
    """Calls a function with each of several items, in as many threads as are asked for.

    The threads are daemons: an interruption need not wait for them, as it would for those of `concurrent.futures`.

    Args:
        call: Takes an item, and an event; where the event is set it should begin nothing more.
        items: What it is called with.
        workers: Calls at the same time.
        patience: Seconds for which the calls that run are waited for once one has failed, so that their results are not lost.

    Yields:
        The place of an item, and what the call returned, in the order in which they end.

    Raises:
        Exception: what the first call that failed raised, after the results of the others.
    """
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[int, Any, BaseException | None]] = queue.SimpleQueue()
    stop = threading.Event()
    for place in range(len(items)):
        waiting.put(place)

    def work() -> None:
        while not stop.is_set():
            try:
                place = waiting.get_nowait()
            except queue.Empty:
                break
            try:
                done.put((place, call(items[place], stop), None))
            except BaseException as error:  # whatever it is, it is for the thread that asked
                stop.set()
                done.put((place, None, error))
        done.put((_ENDED, None, None))

    running = min(workers, len(items))
    for _ in range(running):
        threading.Thread(target=work, daemon=True).start()
    failure: BaseException | None = None
    deadline = float("inf")
    try:
        while running and time.monotonic() < deadline:
            left = None if failure is None else max(0.0, deadline - time.monotonic())
            try:
                place, result, error = done.get(timeout=left)
            except queue.Empty:
                break
            if place == _ENDED:
                running -= 1
            elif error is None:
                yield place, result
            elif failure is None:
                failure, deadline = error, time.monotonic() + patience
    finally:
        stop.set()
    if failure is not None:
        raise failure
