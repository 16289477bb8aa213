"""Rules that settings are checked by, once, before anything is loaded: of numbers and of what is on or off.

A settings class has a table of them by the names of its fields, and calls `check_settings`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

LARGEST_SEED = 2**32 - 1
"""numpy's global generator takes no larger seed."""
_MOST_WHOLE = 2**53
"""Whole numbers above it are no counts of anything, and floats do not hold them exactly."""


class Rule(Protocol):
    """What a value must be."""

    def check(self, name: str, value: Any) -> None:
        """Refuses a value.

        Args:
            name: The setting's name, for the error.
            value: What it was set to.

        Raises:
            ValueError: the value breaks the rule; the error names the setting, the value and the rule.
        """


@dataclass(frozen=True)
class Number:
    """A finite number in a range; True and texts are none. Made by `number` and `whole`.

    Attributes:
        least: The smallest allowed. None: no such bound, as for the others.
        above: It must be larger than that.
        most: The largest allowed.
        below: It must be smaller than that.
        is_whole: Whether it must be an integer.
        kind: What it is, for the error.
        also: A value beside the range that has a meaning of its own.
    """

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None
    is_whole: bool = False
    kind: str = "a finite number"
    also: int | None = None

    def __str__(self) -> str:
        """The rule in words: ``a finite number above 0, at most 1``."""
        words = self.kind
        if self.above is not None:
            words += f" above {self.above:g}"
        parts = [f"at least {self.least:g}"] if self.least is not None else []
        parts += [f"at most {self.most:,}"] if self.most is not None and self.most != _MOST_WHOLE else []
        parts += [f"below {self.below:g}"] if self.below is not None else []
        parts += [f"or {self.also}"] if self.also is not None else []
        return ", ".join([words, *parts])

    def check(self, name: str, value: Any) -> None:
        """See `Rule.check`."""
        if not self.allows(value):
            raise ValueError(f"{name}={value!r} must be {self}.")

    def allows(self, value: Any) -> bool:
        """Whether a value keeps the rule."""
        kinds = (int, np.integer) if self.is_whole else (int, float, np.integer, np.floating)
        # In Python True is a whole number too.
        if isinstance(value, bool) or not isinstance(value, kinds) or not _is_finite(value):
            return False
        if self.also is not None and value == self.also:
            return True
        return bool(
            (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.most is None or value <= self.most)
            and (self.below is None or value < self.below)
        )


@dataclass(frozen=True)
class Flag:
    """True or False; a text as ``"no"`` would count as true."""

    def check(self, name: str, value: Any) -> None:
        """See `Rule.check`."""
        if not isinstance(value, bool | np.bool_):
            raise ValueError(f"{name}={value!r} must be True or False.")


@dataclass(frozen=True)
class Each:
    """A list whose entries all keep a rule.

    Attributes:
        rule: What each entry must be.
        least: The smallest number of entries.
    """

    rule: Number
    least: int = 0

    def check(self, name: str, value: Any) -> None:
        """See `Rule.check`."""
        if not isinstance(value, list | tuple) or not all(self.rule.allows(entry) for entry in value):
            raise ValueError(f"{name}={value!r} must be a list, each entry {self.rule}.")
        if len(value) < self.least:
            raise ValueError(f"{name}={value!r} must have at least {self.least}.")


def number(
    least: float | None = None, above: float | None = None, most: float | None = None, below: float | None = None
) -> Number:
    """A finite number in a range; see `Number`."""
    return Number(least, above, most, below)


def whole(least: int, most: int = _MOST_WHOLE, of: str = "", also: int | None = None) -> Number:
    """A whole number in a range; `of` names its unit, as ``tokens``. See `Number`."""
    return Number(least, most=most, is_whole=True, kind=f"a whole number{f' of {of}' * bool(of)}", also=also)


FLAG = Flag()
SEED = whole(0, LARGEST_SEED)
SHARE = number(above=0, most=1)
SLOTS = whole(1, 1_000_000)
"""Numbers of episodes side by side."""
TOKENS = whole(1, 10_000_000, "tokens")
"""Lengths of texts."""


def check_settings(settings: Any, rules: Mapping[str, Rule]) -> None:
    """Checks the fields of a dataclass; one that is None is left to its default, where that is None.

    Args:
        settings: The object whose attributes are checked.
        rules: The rule of each attribute, by name.

    Raises:
        ValueError: one of them breaks its rule.
    """
    for name, rule in rules.items():
        value = getattr(settings, name)
        # A dataclass keeps the defaults of its fields as attributes of the class.
        if value is not None or getattr(type(settings), name, value) is not None:
            rule.check(name, value)


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond all floats
        return False
