"""What a world is, and what its answers must be.

A world is an environment of Gymnasium's interface whose observations and actions are texts:

    reset(seed=…, options={"row": record}) -> (text, info)
    step(text) -> (text, reward, terminated, truncated, info)

A text may also be a list of chat messages, ``{"role": …, "content": …}``. `options` is given where the environment has
prompts. A world may have an attribute ``tools``, a list of JSON schemas, which a chat template that knows tools writes into the
first state, and an attribute ``takes_messages``: if it is true, `step` is given the turn as a chat message with its
``tool_calls``, as the tokenizer's ``response_template`` reads it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import numpy as np

from llm_env.reward.shown import one_line
from llm_env.text.prompts import RawPrompt, checked_prompt

WorldSource: TypeAlias = str | Callable[..., Any]
"""A registered Gymnasium id, ``package.module:factory``, or a factory: something callable that returns a world."""


class TextWorld(Protocol):
    """An environment whose observations and actions are texts; `gymnasium.Env`s of texts are such."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[RawPrompt, dict[str, Any]]:
        """Starts an episode; see `gymnasium.Env.reset`."""

    def step(self, action: Any, /) -> tuple[RawPrompt, float, bool, bool, dict[str, Any]]:
        """Answers a turn; see `gymnasium.Env.step`."""


class WorldError(RuntimeError):
    """A world failed, did not answer in time, or answered something unusable."""


@dataclass(frozen=True)
class Answer:
    """What a world said to a turn, or at its reset.

    Attributes:
        text: A text, or chat messages.
        reward: What it paid.
        ended: Whether its episode is over, terminated or truncated.
        info: The plain values of its information: texts, numbers, True and False.
        tools: Schemas of the world's tools, with the answer to a reset.
    """

    text: RawPrompt
    reward: float = 0.0
    ended: bool = False
    info: dict[str, Any] = field(default_factory=dict)
    tools: list[dict[str, Any]] | None = None


@dataclass(frozen=True)
class Fault:
    """Why a world gave no answer.

    Attributes:
        end: ``world_error`` or ``world_timeout``, names of `llm_env.episode.ENDS`.
        message: What happened, in a line.
    """

    end: str
    message: str


def reset_answer(name: str, result: Any) -> Answer:
    """What `reset` returned, checked.

    Args:
        name: The world, as error messages call it.
        result: What it returned.

    Raises:
        WorldError: it is not a pair of a text and information.
    """
    if not isinstance(result, tuple) or len(result) != 2:
        raise WorldError(f"{name}: reset must return (text, info); it returned {shown(result)}.")
    return Answer(_checked_text(name, "reset", result[0]), info=_plain(name, "reset", result[1]))


def step_answer(name: str, result: Any) -> Answer:
    """What `step` returned, checked.

    Args:
        name: The world, as error messages call it.
        result: What it returned.

    Raises:
        WorldError: it is not (text, reward, terminated, truncated, info), or the reward is not a finite number.
    """
    if not isinstance(result, tuple) or len(result) != 5:
        raise WorldError(
            f"{name}: step must return (text, reward, terminated, truncated, info); it returned {shown(result)}."
        )
    text, reward, terminated, truncated, info = result
    try:
        paid = float("nan") if isinstance(reward, str | bytes) else float(reward)
    except (TypeError, ValueError, OverflowError):
        paid = math.nan
    if not math.isfinite(paid):
        raise WorldError(f"{name}: step returned the reward {shown(reward)}, which is not a finite number.")
    for flag, value in (("terminated", terminated), ("truncated", truncated)):
        if not isinstance(value, bool | np.bool_):
            raise WorldError(f"{name}: step returned {flag}={shown(value)}, which is not True or False.")
    return Answer(_checked_text(name, "step", text), paid, bool(terminated or truncated), _plain(name, "step", info))


def shown(value: Any) -> str:
    """A value of somebody else's in an error message: one line, cut."""
    return f"{type(value).__name__} {one_line(repr(value), 60)}"


def _checked_text(name: str, method: str, text: Any) -> RawPrompt:
    """A text, which may be empty, or messages; one that cannot be written as UTF-8 is refused."""
    if not isinstance(text, str | list | tuple):
        raise WorldError(f"{name}: {method} returned {shown(text)} where its text should be.")
    if isinstance(text, str):
        parts = [text]
    else:
        try:
            text = checked_prompt(f"{name}: {method}", text) if len(text) else ""
        except ValueError as error:
            raise WorldError(str(error)) from error
        parts = [text] if isinstance(text, str) else [value for message in text for value in message.values()]
    try:
        "".join(parts).encode("utf-8")
    except UnicodeEncodeError as error:
        raise WorldError(f"{name}: {method} returned half of a character (a lone surrogate) in its text.") from error
    return text


def _plain(name: str, method: str, info: Any) -> dict[str, Any]:
    """The texts and numbers in a world's information; arrays and objects stay in the world."""
    if not isinstance(info, Mapping):
        raise WorldError(f"{name}: {method} returned {shown(info)} where its info should be, a dictionary.")
    values = {str(k): v.item() if isinstance(v, np.generic) else v for k, v in info.items()}
    return {k: v for k, v in values.items() if isinstance(v, str | int | float | bool)}
