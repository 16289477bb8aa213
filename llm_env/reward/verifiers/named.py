"""Verifiers by their names in settings: ``verifier:NAME?option=value&…``."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llm_env.options import parse_options
from llm_env.reward.columns import ColumnNames
from llm_env.reward.functions import FunctionReward
from llm_env.reward.limits import CallLimits
from llm_env.reward.verifiers.base import Verifier
from llm_env.reward.verifiers.choice import ChoiceVerifier
from llm_env.reward.verifiers.exact import ExactVerifier
from llm_env.reward.verifiers.formula import MathVerifier
from llm_env.reward.verifiers.ifeval import IFEvalVerifier
from llm_env.reward.verifiers.json_schema import JSONVerifier
from llm_env.reward.verifiers.layout import FormatVerifier
from llm_env.reward.verifiers.length import LengthVerifier
from llm_env.reward.verifiers.number import NumberVerifier
from llm_env.reward.verifiers.reasoning_gym import ReasoningGymVerifier
from llm_env.reward.verifiers.regex import RegexVerifier
from llm_env.text.prompts import PromptRecord

PREFIX = "verifier:"
VERIFIERS: dict[str, type[Verifier]] = {
    "number": NumberVerifier,
    "exact": ExactVerifier,
    "math": MathVerifier,
    "choice": ChoiceVerifier,
    "json": JSONVerifier,
    "regex": RegexVerifier,
    "ifeval": IFEvalVerifier,
    "format": FormatVerifier,
    "length": LengthVerifier,
    "reasoning_gym": ReasoningGymVerifier,
}


def is_verifier(name: str) -> bool:
    """Whether a reward model's name is a verifier's."""
    return name.startswith(PREFIX)


def make_verifier(name: str, option: str = "reward_model") -> Verifier:
    """Makes the verifier of a name, with its options.

    Args:
        name: ``verifier:NAME`` or ``verifier:NAME?option=value&…``.
        option: The option that it came from, for error messages.

    Raises:
        ImportError: it needs a package that is not installed.
        ValueError: there is no such verifier or option, or a value breaks its rule.
    """
    label = f"{option}={name!r}"
    kind, values = parse_options(name.removeprefix(PREFIX), label)
    if kind not in VERIFIERS:
        near = difflib.get_close_matches(kind, VERIFIERS, 1)
        hint = f"Did you mean {near[0]!r}?" if near else f"There are {', '.join(VERIFIERS)}."
        raise ValueError(f"{label}: there is no verifier {kind!r}. {hint}")
    fields = {f.name: f for f in dataclasses.fields(VERIFIERS[kind]) if f.init}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            raise ValueError(f"{label}: {kind} has no option {key!r}; it has {', '.join(fields)}.")
    try:
        return VERIFIERS[kind](**{k: _typed(k, v, type(fields[k].default)) for k, v in values.items()})
    except ValueError as error:
        raise ValueError(f"{label}: {str(error).rstrip('.')}.") from error


def _typed(name: str, text: str, kind: type) -> Any:
    """An option's value as its default's type.

    Raises:
        ValueError: it is none of that type.
    """
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(f"{name}={text!r} must be true or false")
        return text.lower() == "true"
    try:
        return kind(text)
    except ValueError as error:
        raise ValueError(f"{name}={text!r} must be {'a whole number' if kind is int else 'a number'}") from error


class VerifierReward(FunctionReward):
    """A reward model that is a verifier; what holds for functions, as time limits, holds for it too.

    Args:
        name: The verifier's name in settings.
        option: The option that it came from, for error messages.
        limits: How long a call may take, and for how long one that fails is repeated.

    Raises:
        ImportError, ValueError: as `make_verifier`.
    """

    def __init__(self, name: str, option: str = "reward_model", limits: CallLimits | None = None) -> None:
        self.verifier = make_verifier(name, option)
        super().__init__(_scorer(self.verifier), option, limits)
        self.name = name
        self.columns = ColumnNames(needed=self.verifier.columns)

    def check_prompts(self, records: Sequence[PromptRecord]) -> None:
        """Makes sure that the columns are there, and hold what responses can be verified against."""
        super().check_prompts(records)
        for record in records:
            try:
                self.verifier.check(record.columns)
            except ValueError as error:
                raise ValueError(f"{record.where}: {error} ({self.option}={self.name!r}).") from error


def _scorer(verifier: Verifier) -> Callable[..., list[float]]:
    """The verifier as a reward function."""

    def score(prompts: list[str], responses: list[str], **columns: list[Any]) -> list[float]:
        rows: list[Mapping[str, Any]] = [{n: c[i] for n, c in columns.items()} for i in range(len(responses))]
        return [verifier.score(response, row) for response, row in zip(responses, rows, strict=True)]

    return score
