"""The verifier ``ifeval``: the response follows the instructions that a record of the IFEval dataset lists."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llm_env.lm.names import check_choice
from llm_env.reward.verifiers.base import Verifier
from llm_env.reward.verifiers.ifeval_rules import RULES
from llm_env.text.records import parsed_json

MODES = ("strict", "loose")
SCORES = ("share", "all")


@dataclass(frozen=True)
class IFEvalVerifier(Verifier):
    """How far a response follows the instructions of its prompt, which are listed by the IFEval dataset's ids.

    Attributes:
        score_by: ``share``: the share of the instructions that are followed; ``all``: 1 where all are, else 0.
        mode: ``strict``, or ``loose``: an instruction is followed too where the response follows it without its first line, its
            last line, both, or without asterisks (section 2.2 of the paper).
        ids: Column with the list of instruction ids.
        kwargs: Column with the list of their arguments, one object for each id; arguments that are null are left out.
    """

    score_by: str = "share"
    mode: str = "strict"
    ids: str = "instruction_id_list"
    kwargs: str = "kwargs"

    def __post_init__(self) -> None:
        """Checks the options."""
        check_choice("mode", self.mode, MODES)
        check_choice("score_by", self.score_by, SCORES)

    @property
    def columns(self) -> tuple[str, ...]:
        """See `Verifier.columns`."""
        return (self.ids, self.kwargs)

    def check(self, record: Mapping[str, Any]) -> None:
        """See `Verifier.check`."""
        for name, arguments in self._instructions(record):
            if name not in RULES:
                raise ValueError(
                    f"{self.ids}: {name!r} is none of the instructions that can be counted: {', '.join(RULES)}"
                )
            try:
                RULES[name]("a", **arguments)
            except (TypeError, ValueError, AttributeError) as error:
                raise ValueError(f"{self.kwargs}: {name} cannot be counted with {arguments!r:.200}: {error}") from error

    def score(self, response: str, record: Mapping[str, Any]) -> float:
        """See `Verifier.score`."""
        texts = [text for text in ([response] if self.mode == "strict" else _loosened(response)) if text.strip()]
        instructions = self._instructions(record)
        followed = sum(any(RULES[name](text, **arguments) for text in texts) for name, arguments in instructions)
        return followed / len(instructions) if self.score_by == "share" else float(followed == len(instructions))

    def _instructions(self, record: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
        """The instructions of a prompt: ids and arguments.

        Raises:
            ValueError: the columns are no lists of ids and of objects, equally long.
        """
        ids, kwargs = (_parsed(record[name], name) for name in (self.ids, self.kwargs))
        lists = isinstance(ids, list) and isinstance(kwargs, list) and len(ids) == len(kwargs) > 0
        if not lists or not all(
            isinstance(i, str) and isinstance(k, dict | None) for i, k in zip(ids, kwargs, strict=True)
        ):
            raise ValueError(f"{self.ids} and {self.kwargs} must be lists of ids and of objects, one for each id")
        return [
            (name, {k: v for k, v in (arguments or {}).items() if v is not None})
            for name, arguments in zip(ids, kwargs, strict=True)
        ]


def _parsed(value: Any, name: str) -> Any:
    """A column that a .csv file has as the text of its JSON."""
    return parsed_json(value, name) if isinstance(value, str) else value


def _loosened(response: str) -> list[str]:
    """The response, and what is left of it without first and last line and asterisks: eight texts."""
    lines = response.split("\n")
    parts = [lines, lines[1:], lines[:-1], lines[1:-1]]
    texts = ["\n".join(part).strip() for part in parts]
    return texts + [text.replace("*", "") for text in texts]
