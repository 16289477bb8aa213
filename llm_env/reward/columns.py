"""Which columns of the prompts' records a reward function gets: those that its parameters name."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llm_env.reward.scores import RewardModelError
from llm_env.reward.shown import quoted
from llm_env.text.columns import shared_names
from llm_env.text.prompts import PromptRecord

RESERVED = ("prompts", "responses")
"""Names that no column can be passed by."""
_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
Columns = Sequence[Mapping[str, Any]]
"""The columns of each prompt of a call, in the order of the prompts."""


@dataclass(frozen=True)
class ColumnNames:
    """The columns that a reward function takes.

    Attributes:
        needed: Parameters without a default: each record must have such a column.
        wanted: Parameters with a default, which stands where a record has no such column.
        takes_rest: Whether it takes any further column too, as ``**columns``.
        taken: Names of its first two parameters, by which no column can be passed.
    """

    needed: tuple[str, ...] = ()
    wanted: tuple[str, ...] = ()
    takes_rest: bool = False
    taken: tuple[str, ...] = RESERVED

    @classmethod
    def of(cls, function: Callable[..., object]) -> ColumnNames:
        """What a function takes besides prompts and responses, by its signature; of some written in C none is known.

        Raises:
            TypeError: it cannot be called with prompts and responses in the first two places and columns by name.
        """
        try:
            parameters = list(inspect.signature(function).parameters.values())
        except (TypeError, ValueError):
            return cls()
        variadic = {p.kind for p in parameters}
        positional = [p for p in parameters if p.kind is p.POSITIONAL_ONLY or p.kind is p.POSITIONAL_OR_KEYWORD]
        if len(positional) < 2 and inspect.Parameter.VAR_POSITIONAL not in variadic:
            raise TypeError("has no place for prompts and responses")
        if positional and positional[0].name in ("completions", "responses"):
            raise TypeError(f"has {positional[0].name!r} in the place of the prompts")
        rest = positional[2:] + [p for p in parameters if p.kind is p.KEYWORD_ONLY]
        for parameter in rest:
            if parameter.kind not in _BY_NAME and parameter.default is parameter.empty:
                raise TypeError(f"takes no name for {parameter.name!r}")
        named = [p for p in rest if p.kind in _BY_NAME]
        return cls(
            tuple(p.name for p in named if p.default is p.empty),
            tuple(p.name for p in named if p.default is not p.empty),
            inspect.Parameter.VAR_KEYWORD in variadic,
            tuple(p.name for p in positional[:2]),
        )

    def check(self, records: Sequence[PromptRecord], label: str) -> None:
        """Makes sure that each record has the needed columns.

        Args:
            records: Prompts that responses are going to be scored to.
            label: The reward model as error messages call it.

        Raises:
            ValueError: one lacks a column; the record's file and line are named.
        """
        for record in records:
            if lacking := self._lacking(record.columns):
                raise ValueError(f"{record.where}: {_lacks(lacking, record.columns)}, which {label} takes.")

    def select(self, columns: Columns, prompts: Sequence[str], label: str) -> dict[str, list[Any]]:
        """The keyword arguments of a call: the columns by name, each a list with an entry for each response.

        The entries are copies, which the function may change.

        Args:
            columns: The columns of each response's prompt.
            prompts: The responses' prompts, to name one that lacks something.
            label: The reward model as error messages call it.

        Raises:
            RewardModelError: a needed column is missing.
        """
        for row, prompt in zip(columns, prompts, strict=True):
            if lacking := self._lacking(row):
                raise RewardModelError(f"{label}: the record of prompt {quoted(prompt)} {_lacks(lacking, row)}.")
        names = [n for n in shared_names(columns) if n in self.needed or n in self.wanted or self.takes_rest]
        return {n: [copy.deepcopy(row[n]) for row in columns] for n in names if n not in self.taken}

    def _lacking(self, row: Mapping[str, Any]) -> list[str]:
        return [name for name in self.needed if name not in row]


EVERYTHING = ColumnNames(takes_rest=True)
"""What a reward server is sent."""


def _lacks(names: list[str], row: Mapping[str, Any]) -> str:
    """What a record lacks, and what it has."""
    wanted = " and ".join(map(repr, names))
    return f"has no column {wanted} (it has {', '.join(map(str, row)) or 'the prompt alone'})"
