"""Reward functions: any Python function of prompts and responses."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

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


class FunctionReward(TextReward):
    """A reward model that is a Python function of (prompts, responses).

    Args:
        function: The function itself, or its name ``"package.module:function"``; the module is looked for in the current
            folder too. It gets two lists of texts and returns one float for each response.
        option: The option that it came from, for error messages.
        limits: How long a call may take, and for how long one that fails is repeated. By default there is no limit, and no
            repetition.

    Attributes:
        name: ``module:function``, of a function that was passed as itself too.
        function: The function.

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
        _check_signature(self.function, self.name, option)

    def score_texts(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        """Calls the function once for all responses.

        Raises:
            RewardModelError: it raised, took too long, or did not return one finite float for each.
        """
        label = f"{self.option}={self.name!r}"
        values = ask_until_answered(lambda: self._attempt(label, prompts, responses), self.limits.wait or 0.0, label)
        return checked_scores(values, prompts, responses, f"{self.name!r}{place_of(self.function)}", self.option)

    def _attempt(self, label: str, prompts: Sequence[str], responses: Sequence[str]) -> Any:
        """Calls the function within the time limit.

        Raises:
            UnavailableError: it raised, or took too long.
            RewardModelError: it tried to end the process, or there can be no time limit here.
        """

        def call() -> Any:
            values = self.function(list(prompts), list(responses))  # lists of its own, which it may change
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


def _check_signature(function: RewardFunction, name: str, option: str) -> None:
    """Refuses a function that two positional arguments do not fit, as many that were written for TRL."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some functions written in C tell none
        return
    try:
        # Binds two arguments without calling; further parameters must have defaults.
        signature.bind([], [])
    except TypeError as error:
        raise ValueError(
            f"{option}={name!r} has the signature {signature}, but is called as function(prompts, responses), with two "
            "lists of texts. Wrap one that was written for TRL: "
            "lambda prompts, responses: f(prompts=prompts, completions=responses)."
        ) from error
