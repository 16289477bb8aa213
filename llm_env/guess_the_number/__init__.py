"""The second embedded task: a number between 1 and 15 is to be found by questions, in turns.

``world`` is the game, a Gymnasium environment of texts, with its best play; ``assets/actor`` a tiny model that plays at random,
built by ``scripts/lab/build_guess_the_number.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

ASSETS = Path(__file__).parent / "assets"
GUESSER = str(ASSETS / "actor")
GUESSES = 4


def game_settings(model: str = GUESSER) -> dict[str, Any]:
    """The environment's settings for the game: four turns of at most two digits and an end token.

    Args:
        model: Folder of a model with the game's tokenizer.
    """
    return {
        "model": model,
        "world": "GuessTheNumber-v0",
        "world_kwargs": {"largest": 15, "guesses": GUESSES},
        "max_turns": GUESSES,
        "max_turn_tokens": 3,
        "max_new_tokens": 3 * GUESSES,
        "max_world_tokens": 4,
        "max_prompt_length": 4,
        "kl_coef": 0.0,
    }
