"""Reward functions: any Python function of prompts and responses."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Sequence

from llm_env.episode import Episode
from llm_env.reward.scores import RewardFunction, RewardModelError, checked_scores


class FunctionReward:
    """A reward model that is a Python function of (prompts, responses).

    Args:
        function: The function itself, or its name ``"package.module:function"``; the module is looked for in the current
            folder too. It gets two lists of texts and returns one float for each response.
        option: The option that it came from, for error messages.

    Attributes:
        name: ``module:function``, of a function that was passed as itself too.
        function: The function.

    Raises:
        ValueError: there is no such module or function, or it cannot be called with prompts and responses.
    """

    def __init__(self, function: str | RewardFunction, option: str = "reward_model") -> None:
        self.option = option
        if isinstance(function, str):
            self.name = function
            self.function = _import_function(function, option)
        else:
            self.name = function_name(function)
            self.function = function
        _check_signature(self.function, self.name, option)

    def score(self, episodes: Sequence[Episode]) -> list[float]:
        """Calls the function once for all episodes.

        Raises:
            RewardModelError: it raised, or did not return one finite float for each.
        """
        prompts, responses = [e.prompt.text for e in episodes], [e.response_text for e in episodes]
        try:
            values = self.function(prompts, responses)
        except Exception as error:
            raise RewardModelError(f"{self.option}={self.name!r} raised {type(error).__name__}: {error}") from error
        return checked_scores(values, len(episodes), self.name, self.option)


def function_name(function: Callable[..., object]) -> str:
    """``module:qualname`` of a function; of another callable object, those of its class."""
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}:{named.__qualname__}"


def _import_function(name: str, option: str) -> RewardFunction:
    module_name, _, function_name = name.partition(":")
    # In sys.path the empty string stands for the current folder.
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())  # a script's own folder is there, the folder that it is called from is not
    try:
        function: RewardFunction = getattr(importlib.import_module(module_name), function_name)
    except ImportError as error:
        raise ValueError(
            f"{option}={name!r}: module {module_name!r} cannot be imported ({error}). A reward function is named "
            "'package.module:function', and its module must be in the current folder or on PYTHONPATH."
        ) from error
    except AttributeError as error:
        raise ValueError(f"{option}={name!r}: module {module_name!r} has no {function_name!r}.") from error
    if not callable(function):
        raise ValueError(f"{option}={name!r} is not a function.")
    return function


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
