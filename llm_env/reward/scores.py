"""What a reward model is, and what its scores must be."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from llm_env.episode import Episode
from llm_env.reward.shown import one_line, quoted
from llm_env.rules import number
from llm_env.text.prompts import PromptRecord

RewardFunction: TypeAlias = Callable[..., Sequence[float]]
"""Scores responses: takes prompts and responses, two lists of texts, and by name the columns of the prompts' records that its
further parameters name, each a list too; returns one float for each response."""
RewardSource: TypeAlias = str | RewardFunction | Sequence[Any]
"""A reward model's name, a function, or a list of such or of ``[reward model, weight]``; see `llm_env.reward.models`."""


class RewardModelError(RuntimeError):
    """A reward model failed, or returned something that is not one finite number for each response."""


class RewardModel(Protocol):
    """What scores episodes."""

    def score(self, episodes: Sequence[Episode]) -> list[float]:
        """One finite score for each finished episode, in their order."""

    def check_prompts(self, records: Sequence[PromptRecord]) -> None:
        """Makes sure, before anything is generated, that responses to these prompts can be scored.

        Raises:
            ValueError: a record lacks what is needed; its file and line are named.
        """


class TextReward(ABC):
    """A reward model that reads texts: a function, or a server."""

    @abstractmethod
    def score_texts(
        self, prompts: Sequence[str], responses: Sequence[str], columns: Sequence[Mapping[str, Any]] | None = None
    ) -> list[float]:
        """One finite score for each pair of a prompt and a response, in their order.

        Args:
            prompts: The prompts' texts.
            responses: The responses' texts, one for each prompt.
            columns: The columns of each prompt's record. None: there are none.

        Raises:
            RewardModelError: there are none.
        """

    @abstractmethod
    def check_prompts(self, records: Sequence[PromptRecord]) -> None:
        """See `RewardModel.check_prompts`."""

    def score(self, episodes: Sequence[Episode]) -> list[float]:
        """Scores the texts of finished episodes, all in one call."""
        prompts = [e.prompt for e in episodes]
        return self.score_texts(
            [p.text for p in prompts], [e.response_text for e in episodes], [p.columns for p in prompts]
        )


def checked_scores(
    values: Any, prompts: Sequence[str], responses: Sequence[str], name: str, option: str = "reward_model"
) -> list[float]:
    """Makes sure of one finite float for each response.

    Args:
        values: What the reward model returned: a sequence of numbers, or an array or tensor of shape (n,) or (n, 1).
        prompts: The prompts of the n responses.
        responses: The n responses that it was asked about.
        name: The reward model as error messages call it, quoted, and where its code stands if that is known.
        option: The option that the name came from, for error messages.

    Raises:
        RewardModelError: a wrong count or shape, something that is not a number, NaN or infinity.
    """
    label = f"{option}={name}"
    entries = _entries(values, len(responses), label)
    scores: list[float] = []
    for value, prompt, response in zip(entries, prompts, responses, strict=True):
        try:
            scores.append(_number(value))
        except (TypeError, ValueError, OverflowError) as error:
            raise RewardModelError(
                f"{label} must return one float for each response; it returned {one_line(repr(value), 60)} for "
                f"prompt {quoted(prompt)}, response {quoted(response)}."
            ) from error
    bad = [i for i, score in enumerate(scores) if not math.isfinite(score)]
    if bad:
        raise RewardModelError(
            f"{label} returned {scores[bad[0]]} for {len(bad)} of {len(scores)} responses; scores must be finite. The first is "
            f"for prompt {quoted(prompts[bad[0]])}, response {quoted(responses[bad[0]])}."
        )
    return scores


def _entries(values: Any, count: int, label: str) -> Sequence[Any]:
    """What was returned as a sequence with an entry for each response."""
    shape = getattr(values, "shape", None)
    if shape is not None and hasattr(values, "tolist"):  # an array, a tensor, a column of a table
        if tuple(shape) not in ((count,), (count, 1)):
            raise RewardModelError(
                f"{label} must return one float for each response; it returned a {type(values).__name__} of shape "
                f"{tuple(shape)} for {count} responses."
            )
        return [v[0] if isinstance(v, list) else v for v in values.tolist()]
    # A text, a mapping and a set are iterable too, but what one would go over are no scores.
    if not isinstance(values, Sequence) or isinstance(values, str | bytes):
        raise RewardModelError(
            f"{label} must return a list with one float for each response; it returned a {type(values).__name__}: "
            f"{one_line(repr(values), 120)}."
        )
    if len(values) != count:
        raise RewardModelError(f"{label} returned {len(values)} scores for {count} responses.")
    return values


def _number(value: Any) -> float:
    if isinstance(value, str | bytes):  # float() would read the number in it
        raise TypeError("a text")
    return float(value)


def weighted(entry: Any, option: str) -> tuple[Any, float]:
    """An entry of a list of reward models as (reward model, weight); one without a weight counts once.

    Args:
        entry: A name, a function, or a pair ``[reward model, weight]``.
        option: The option that the list came from, for error messages.

    Raises:
        ValueError: it is none of these, or the weight is not a finite number.
    """
    if isinstance(entry, str | Path) or callable(entry):
        return entry, 1.0
    # Pairs may come from YAML or JSON, so lists count as tuples.
    if not isinstance(entry, list | tuple) or len(entry) != 2:
        raise ValueError(f"{option}: an entry is a name, a function, or a pair [reward model, weight]; got {entry!r}.")
    part, weight = entry
    if not number().allows(weight):
        raise ValueError(f"{option}: the weight of {part!r} must be {number()}; got {weight!r}.")
    return part, float(weight)
