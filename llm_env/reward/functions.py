"""Reward functions: any Python function of prompts and responses, and of the columns of the prompts' records that it names."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from llm_env.reward.columns import ColumnNames
from llm_env.reward.limits import (
    CallLimits,
    OutOfTimeError,
    UnavailableError,
    ask_until_answered,
    call_within,
    can_interrupt,
)
from llm_env.reward.scores import RewardFunction, RewardModelError, TextReward, checked_scores
from llm_env.reward.user_code import described, import_function, place_of, place_of_error
from llm_env.text.prompts import PromptRecord


class FunctionReward(TextReward):
    """A reward model that is a Python function of (prompts, responses), and of columns of the prompts' records.

    ``def score(prompts, responses, answer, **columns)`` gets the column ``answer``, which each record must have, and all other
    columns that every record has. A parameter with a default keeps it where a record has no such column.

    Args:
        function: The function itself, or its name ``"package.module:function"``; the module is looked for in the current
            folder too. It gets two lists of texts, and a list for each column, and returns one float for each response.
        option: The option that it came from, for error messages.
        limits: How long a call may take, and for how long one that fails is repeated. By default there is no limit, and no
            repetition.

    Attributes:
        name: ``module:function``, of a function that was passed as itself too.
        function: The function.
        columns: The columns that it takes.

    Raises:
        ValueError: there is no such module or function, it fails when it is imported, or it cannot be called with prompts and
            responses.
    """

    def __init__(
        self, function: str | RewardFunction, option: str = "reward_model", limits: CallLimits | None = None
    ) -> None:
        self.option = option
        self.limits = limits or CallLimits()
        if isinstance(function, str):
            self.name = function
            self.function: RewardFunction = import_function(function, option)
        else:
            self.name = function_name(function)
            self.function = function
        self.columns = _columns_of(self.function, self.name, option)

    def check_prompts(self, records: Sequence[PromptRecord]) -> None:
        """Makes sure that each prompt's record has the columns that the function needs; see `RewardModel.check_prompts`."""
        self.columns.check(records, f"{self.option}={self.name!r}")

    def score_texts(
        self, prompts: Sequence[str], responses: Sequence[str], columns: Sequence[Mapping[str, Any]] | None = None
    ) -> list[float]:
        """Calls the function once for all responses; see `TextReward.score_texts`.

        Raises:
            RewardModelError: it raised, took too long, or did not return one finite float for each; or a prompt's record has no
                column that it needs.
        """
        label = f"{self.option}={self.name!r}"
        rows = [{}] * len(prompts) if columns is None else columns
        values = ask_until_answered(
            lambda: self._attempt(label, prompts, responses, rows), self.limits.wait or 0.0, label
        )
        return checked_scores(values, prompts, responses, f"{self.name!r}{place_of(self.function)}", self.option)

    def _attempt(
        self, label: str, prompts: Sequence[str], responses: Sequence[str], rows: Sequence[Mapping[str, Any]]
    ) -> Any:
        """Calls the function within the time limit.

        Raises:
            UnavailableError: it raised, or took too long.
            RewardModelError: it tried to end the process, or there can be no time limit here.
        """
        columns = self.columns.select(rows, prompts, label)

        def call() -> Any:
            values = self.function(list(prompts), list(responses), **columns)  # lists of its own, which it may change
            return list(values) if isinstance(values, Iterator) else values  # a generator runs here, within the limit

        seconds = self.limits.timeout
        if seconds is not None and not can_interrupt():
            raise RewardModelError(
                f"{label}: reward_timeout stops a Python function by a signal, which only the main thread of a POSIX process "
                "gets. Leave it out here, or let a server call the function (docs/reward_server.md)."
            )
        try:
            return call() if seconds is None else call_within(seconds, call)
        except OutOfTimeError as error:
            raise UnavailableError(
                f"{label} did not return within {seconds:g} s (reward_timeout); it was stopped{place_of_error(error)}"
            ) from error
        except SystemExit as error:
            raise RewardModelError(
                f"{label}: {described(error)}{place_of_error(error)}; a reward function returns scores, or raises an error."
            ) from error
        except Exception as error:
            raise UnavailableError(f"{label} raised {described(error)}{place_of_error(error)}") from error


def function_name(function: Callable[..., object]) -> str:
    """``module:qualname`` of a function; of another callable object, those of its class."""
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}:{named.__qualname__}"


def _columns_of(function: RewardFunction, name: str, option: str) -> ColumnNames:
    """The columns that a function takes.

    Raises:
        ValueError: it cannot be called as a reward function, as many that were written for TRL.
    """
    try:
        return ColumnNames.of(function)
    except TypeError as error:
        raise ValueError(
            f"{option}={name!r} has the signature {inspect.signature(function)}, but is called as function(prompts, "
            f"responses), with two lists of texts, and with columns by name: it {error}. Wrap one that was written for TRL: "
            "lambda prompts, responses, **columns: f(prompts=prompts, completions=responses, **columns)."
        ) from error
