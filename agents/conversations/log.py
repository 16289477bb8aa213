"""Chat logs: JSONL of conversations, and the places in them where a user's turn follows an answer.

    {"id": "c1", "messages": [{"role": "user", "content": "How was it?"}, {"role": "assistant", "content": "Good."},
                              {"role": "user", "content": "That is too short."}]}

A user's message may have ``"feedback": "positive"``, ``"negative"`` or ``"none"``: what it says of the answer by somebody who
read it, with which the classifier is compared. An answer that was cut off has ``"finished": false``. Other fields are left
alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.preferences.fields import given_fields
from llm_env.text.prompts import Message, RawPrompt, checked_prompt
from llm_env.text.records import read_records
from llm_env.text.texts import checked_finished

POSITIVE, NEGATIVE, NONE = "positive", "negative", "none"
LABELS = (POSITIVE, NEGATIVE, NONE)


@dataclass(frozen=True)
class Turn:
    """A user's turn behind an answer.

    Attributes:
        conversation: Name of the conversation.
        place: Number of the user's message in it, from 0.
        prompt: The messages before the answer.
        answer: The text that the model answered with, which the reply may be about.
        reply: What the user wrote next.
        truth: What the reply says of the answer by somebody who read it, one of `LABELS`; None: nobody did.
        finished: Whether the answer ended by itself.
    """

    conversation: str
    place: int
    prompt: tuple[Message, ...]
    answer: str
    reply: str
    truth: str | None = None
    finished: bool = True

    @property
    def key(self) -> str:
        """Names the turn in its log."""
        return f"{self.conversation} {self.place}"

    def raw_prompt(self, plain: bool) -> RawPrompt | None:
        """The prompt as training data has it.

        Args:
            plain: As a text, for models without a chat template, which is possible where it is one message of the user; None
                where it is not.
        """
        if not plain:
            return [dict(m) for m in self.prompt]
        is_text = len(self.prompt) == 1 and self.prompt[0]["role"] == "user"
        return self.prompt[0]["content"] if is_text else None


def read_log(source: str | Path, option: str = "log") -> list[Turn]:
    """Reads a chat log; returns each user's turn that follows an answer.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a record is broken (its line is named), the same id stands there twice, or no turn follows an answer.
    """
    turns: list[Turn] = []
    seen: dict[str, str] = {}
    for number, (where, record) in enumerate(read_records(source, option), 1):
        record = given_fields(record) if isinstance(record, dict) else record
        if not isinstance(record, dict) or not isinstance(record.get("messages"), list):
            raise ValueError(f"{where}: a conversation is an object with a list of 'messages'.")
        name = str(record.get("id", f"line {number}"))
        if name in seen:
            raise ValueError(f"{where}: the id {name!r} stands there a second time; see {seen[name]}.")
        seen[name] = where
        messages = checked_prompt(where, record["messages"])
        assert not isinstance(messages, str)
        turns += _turns(where, name, messages, record["messages"])
    if not turns:
        raise ValueError(
            f"{option}={str(source)!r}: no message of a user follows an answer, so nothing is said of any."
        )
    return turns


def _turns(where: str, name: str, messages: Sequence[Message], raw: Sequence[dict[str, Any]]) -> list[Turn]:
    """The turns of one conversation, whose messages are given as they are in the file too."""
    turns = []
    for place in range(2, len(messages)):
        before, answer, reply = messages[: place - 1], messages[place - 1], messages[place]
        if (answer["role"], reply["role"]) != ("assistant", "user") or not answer["content"].strip():
            continue
        truth = raw[place].get("feedback")
        if truth is not None and truth not in LABELS:
            raise ValueError(f"{where}: message {place}: feedback={truth!r:.80} must be one of {', '.join(LABELS)}.")
        finished = checked_finished(f"{where}: message {place - 1}", raw[place - 1])
        turns.append(Turn(name, place, tuple(before), answer["content"], reply["content"], truth, finished))
    return turns
