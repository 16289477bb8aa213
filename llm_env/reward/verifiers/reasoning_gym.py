"""The verifier ``reasoning_gym``: scores answers to prompts from a task of reasoning-gym, by the task's own rule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llm_env.reward.verifiers.answers import check_place, find_answer
from llm_env.reward.verifiers.base import Verifier
from llm_env.text.reasoning_gym import COLUMN, dataset_of


@dataclass(frozen=True)
class ReasoningGymVerifier(Verifier):
    """The score that the task's `score_answer` gives to the response's answer, 0 to 1.

    The prompts come from ``prompts="reasoning_gym:TASK?size=…&seed=…"``, whose records say which task and entry they are.

    Attributes:
        extract: Where the answer is looked for, as in `llm_env.reward.verifiers.answers.find_answer`. With ``auto``, a response
            that marks no answer is the answer.
    """

    extract: str = "auto"

    def __post_init__(self) -> None:
        """Checks the options."""
        check_place(self.extract)

    @property
    def columns(self) -> tuple[str, ...]:
        """See `Verifier.columns`."""
        return (COLUMN,)

    def check(self, record: Mapping[str, Any]) -> None:
        """See `Verifier.check`."""
        self._entry(record)

    def score(self, response: str, record: Mapping[str, Any]) -> float:
        """See `Verifier.score`."""
        answer = find_answer(response, self.extract)
        if answer is None and self.extract == "auto":
            answer = response.strip()
        dataset, entry = self._entry(record)
        return float(dataset.score_answer(answer, entry))

    def _entry(self, record: Mapping[str, Any]) -> tuple[Any, Any]:
        """The task and the entry that a prompt is from.

        Raises:
            ValueError: the column says none.
        """
        source = record[COLUMN]
        if not isinstance(source, dict) or source.keys() != {"task", "settings", "index"}:
            raise ValueError(
                f"{COLUMN}={source!r:.80} must say task, settings and index, as reasoning_gym:TASK gives them"
            )
        dataset = dataset_of(source["task"], source["settings"])
        return dataset, dataset[source["index"]]
