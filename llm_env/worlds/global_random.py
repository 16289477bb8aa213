"""Random numbers for worlds that draw from Python's and numpy's global generators."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

_LOCK = threading.Lock()


class OwnGlobalRandom:
    """A world's own stream of the global generators, so that worlds beside each other, and the training, do not share one.

    Inside `use` the global generators are this world's; outside they are as if it had not been there. One world at a time is
    inside: those that answer slowly wait for each other.
    """

    def __init__(self) -> None:
        self._state: tuple[Any, Any] | None = None

    @contextlib.contextmanager
    def use(self) -> Iterator[None]:
        """Puts this world's generators in place of the global ones, and back."""
        with _LOCK:
            others = (random.getstate(), np.random.get_state())
            if self._state is not None:
                random.setstate(self._state[0])
                np.random.set_state(self._state[1])
            try:
                yield
            finally:
                self._state = (random.getstate(), np.random.get_state())
                random.setstate(others[0])
                np.random.set_state(others[1])
