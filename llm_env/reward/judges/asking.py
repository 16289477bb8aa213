"""Judges by name, and what becomes of replies that say nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from llm_env.lm.names import LoadSettings
from llm_env.reward.judges.instruction import Instruction
from llm_env.reward.judges.local import LocalJudge
from llm_env.reward.judges.names import CONCURRENCY, FEEDBACK, GRADE, SERVED
from llm_env.reward.judges.reading import Reply, grade_of, letter_of, verdict_of
from llm_env.reward.judges.served import ServedJudge
from llm_env.reward.limits import CallLimits
from llm_env.reward.scores import RewardModelError
from llm_env.reward.shown import one_line

UNREADABLE_LEAST = 8
"""So many replies without a verdict, and more than half of all, mean that judge or instruction are at fault."""


class AskedModel(Protocol):
    """A language model that answers questions.

    Attributes:
        label: ``option='name'``, how messages about it begin.
    """

    label: str

    def replies(self, questions: Sequence[str], options: Sequence[str]) -> Iterator[tuple[int, Reply]]:
        """The place of a question and its reply, for each question, in any order."""

    def written(self, questions: Sequence[str], max_new_tokens: int) -> Iterator[tuple[int, Reply]]:
        """The place of a question and a reply with a text, for each question, in any order."""


def load_asked_model(
    name: str,
    load: LoadSettings,
    option: str,
    limits: CallLimits | None = None,
    concurrency: int = CONCURRENCY,
    mixed_precision: str = "no",
) -> AskedModel:
    """The language model of ``llm:NAME`` or ``openai:URL#MODEL``.

    Args:
        name: ``llm:`` and a folder or hub id, or ``openai:``, a server's address, ``#`` and the model's name there.
        load: How a model on this machine is loaded.
        option: The option that the name came from, for error messages.
        limits: How long a request to a server may take, and how long a server that does not answer is waited for.
        concurrency: Requests that a server is sent side by side.
        mixed_precision: ``no``, or ``bf16``: a model on this machine computes under autocast.

    Raises:
        FileNotFoundError, ValueError: the model cannot be loaded, or the name is malformed.
    """
    if name.startswith(SERVED):
        return ServedJudge(name, option, limits, concurrency)
    return LocalJudge(name, load, option, mixed_precision)


def answer_of(reply: Reply, instruction: Instruction) -> float | str | None:
    """What a reply says to an instruction: a grade, a verdict, or a letter; None where it says nothing that was asked for."""
    if instruction.mode == GRADE:
        return grade_of(reply)
    return letter_of(reply, instruction.options) if instruction.mode == FEEDBACK else verdict_of(reply)


class Readable:
    """Counts the replies in which an instruction's answer stands, and stops where too many have none.

    Args:
        instruction: What was asked.
        label: How messages about the judge begin.

    Attributes:
        unreadable: Replies without an answer.
    """

    def __init__(self, instruction: Instruction, label: str) -> None:
        self.instruction = instruction
        self.label = label
        self.count = self.unreadable = 0

    def check(self, reply: Reply) -> None:
        """Counts one reply.

        Raises:
            RewardModelError: more than half of the replies, and `UNREADABLE_LEAST` of them, have no answer.
        """
        self.count += 1
        if answer_of(reply, self.instruction) is not None:
            return
        self.unreadable += 1
        if self.unreadable >= UNREADABLE_LEAST and 2 * self.unreadable > self.count:
            wanted = "a grade from 1 to 10" if self.instruction.mode == GRADE else " or ".join(self.instruction.options)
            raise RewardModelError(
                f"{self.label}: {self.unreadable} of {self.count} replies have no answer that can be read ({wanted}); the last "
                f"is {one_line(reply.text or '', 80)!r}. Ask more clearly (judge_prompt), or another model."
            )
