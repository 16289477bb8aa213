"""*GuessTheNumber*: the world names "higher" or "lower" until the number is found, or the guesses are used up."""

from __future__ import annotations

import string
from functools import cache
from typing import Any

import gymnasium
from gymnasium import spaces

from llm_env.rules import whole

OPENING = "Which number?\n"
HIGHER = "higher"
LOWER = "lower"
RIGHT = "right"
NOT_A_GUESS = "what?"
_TEXT = spaces.Text(max_length=256, min_length=0, charset=string.printable)


class GuessTheNumber(gymnasium.Env[str, str]):
    """The number is drawn at reset, uniformly from 1 to `largest`; each step is a guess, written as a text.

    The answer is ``higher``, ``lower`` or ``right``; ``what?`` to a text that is no number of the range, which
    costs a guess all the same. The reward is 1 for the guess that finds the number, else 0; the episode ends with it, or
    with the last guess. What is found says nothing about how: that binary search is best, a player has to find out.

    Args:
        largest: The largest number that can be drawn; the smallest is 1.
        guesses: Guesses in an episode, at most. Four are what binary search needs for 15 numbers.

    Raises:
        ValueError: an argument is not a whole number of at least 1.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012

    def __init__(self, largest: int = 15, guesses: int = 4) -> None:
        whole(1).check("largest", largest)
        whole(1).check("guesses", guesses)
        self.largest, self.guesses = largest, guesses
        self.observation_space = _TEXT
        self.action_space = _TEXT
        self._number = 0
        self._made = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Draws the number, or takes the one that the record in ``options["row"]`` names as ``number``.

        Raises:
            ValueError: that number is not between 1 and `largest`.
        """
        super().reset(seed=seed)
        number = ((options or {}).get("row") or {}).get("number")
        drawn = int(self.np_random.integers(1, self.largest + 1)) if number is None else number
        if isinstance(drawn, bool) or not isinstance(drawn, int) or not 1 <= drawn <= self.largest:
            raise ValueError(f"number={drawn!r} must be a whole number from 1 to {self.largest}.")
        self._number, self._made = drawn, 0
        return OPENING, {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Answers a guess; ``info`` has the number of ``guesses`` made and whether it was ``found``."""
        self._made += 1
        text = action.strip()
        guess = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
        found = guess == self._number
        if not 1 <= guess <= self.largest:
            answer = NOT_A_GUESS
        else:
            answer = RIGHT if found else HIGHER if guess < self._number else LOWER
        info = {"guesses": self._made, "found": found}
        return answer, float(found), found or self._made == self.guesses, False, info


@cache
def best_play(n: int, guesses: int) -> tuple[float, float]:
    """What the best player reaches, by dynamic programming over the number of candidates.

    With n candidates left, all as likely, the k-th of them is the number with probability 1/n, k - 1 are below and n - k above:

        P(n, g) = max_k [1 + (k-1)·P(k-1, g-1) + (n-k)·P(n-k, g-1)] / n,   P(0, g) = P(n, 0) = 0.

    Args:
        n: Numbers that are possible still.
        guesses: Guesses left, g.

    Returns:
        The probability of finding the number; and the mean number of guesses made, found or not, the smallest among the
        players that reach it.
    """
    if n == 0 or guesses == 0:
        return 0.0, 0.0
    best = (-1.0, 0.0)
    for k in range(1, n + 1):
        (below, below_made), (above, above_made) = best_play(k - 1, guesses - 1), best_play(n - k, guesses - 1)
        found = (1 + (k - 1) * below + (n - k) * above) / n
        made = 1 + ((k - 1) * below_made + (n - k) * above_made) / n
        best = max(best, (round(found, 12), -made))
    return best[0], -best[1]


def random_play(n: int, guesses: int) -> tuple[float, float]:
    """What a player reaches who guesses uniformly from all n numbers, whatever the answers; as `best_play`."""
    missed = 1 - 1 / n
    return 1 - missed**guesses, sum(missed**g for g in range(guesses))


@cache
def listening_play(n: int, guesses: int) -> tuple[float, float]:
    """What a player reaches who guesses uniformly from the n numbers that are possible still; as `best_play`."""
    if n == 0 or guesses == 0:
        return 0.0, 0.0
    found = made = 0.0
    for k in range(1, n + 1):
        for left in (k - 1, n - k):
            further_found, further_made = listening_play(left, guesses - 1)
            found += left / n * further_found / n
            made += left / n * further_made / n
    return found + 1 / n, made + 1
