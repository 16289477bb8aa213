"""What `reset` and `step` are given, checked: options that name a prompt, and actions as token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm_env.task import TextTask
from llm_env.text.prompts import Prompt

RESET_OPTIONS = ("prompt", "prompt_index")


def prompt_from_options(task: TextTask, options: dict[str, Any] | None) -> Prompt | None:
    """The prompt that `reset(options=…)` asks for, or None where it asks for none.

    Args:
        task: Encodes a new prompt, or holds the prompt set.
        options: ``{"prompt": …}``, ``{"prompt_index": …}``, empty or None.

    Raises:
        ValueError: an unknown option, both options at once, or an index outside the prompt set.
    """
    if not options:
        return None
    check_options(options, RESET_OPTIONS)
    if len(options) > 1:
        raise ValueError("options: give 'prompt' or 'prompt_index', not both.")
    if "prompt" in options:
        return task.encode(options["prompt"])
    index = options["prompt_index"]
    if not len(task.prompts):
        raise ValueError(
            f"options['prompt_index']={index!r}: there are no prompts; the world begins each episode itself."
        )
    # A bool would pass for an int: True is 1 in Python.
    if isinstance(index, bool) or not isinstance(index, int | np.integer) or not 0 <= index < len(task.prompts):
        raise ValueError(f"options['prompt_index']={index!r} must be a whole number from 0 to {len(task.prompts) - 1}.")
    return task.prompts[int(index)]


def token_actions(actions: Any, count: int) -> NDArray[np.int64]:
    """Actions as an array of token ids.

    Args:
        actions: One action, or `count` of them: integers, or an array of integers.
        count: Number of slots N.

    Returns:
        Shape (N,).

    Raises:
        ValueError: something is not a whole number, as 3.7, "5" or True, or there are not N. Whether a number is a token's is
            checked by `EpisodeSlots.step`.
    """
    array = np.asarray(actions)
    if array.dtype.kind not in "iu":  # else numpy would cut 3.7 to 3, and read "5" and True as numbers
        raise ValueError(f"action={actions!r} must be a token: a whole number, or an array of whole numbers.")
    if array.size != count:
        raise ValueError(f"action={actions!r} has {array.size} entries for {count} environment(s); give one for each.")
    return array.astype(np.int64, copy=False).reshape(count)


def check_options(options: dict[str, Any], names: Sequence[str]) -> None:
    """Refuses options of `reset` that do not exist.

    Args:
        options: Options of `reset` by name, as the user gave them.
        names: The options that exist.

    Raises:
        ValueError: there is another one; the error names it, and those that exist.
    """
    for name in options:
        if name not in names:
            raise ValueError(f"options has no {name!r}; it can have {' or '.join(repr(n) for n in names)}.")
