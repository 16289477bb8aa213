"""Single responses that are good or bad, as KTO learns from them (Ethayarajh et al. 2024, https://arxiv.org/abs/2402.01306).

A record is TRL's, ``{"prompt": …, "completion": …, "label": true}``; ``response`` is read like ``completion``, and
``"finished": false`` marks one that was cut off. Thumbs of a chat come so, and what people say in conversations
(`agents.conversations`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agents.preferences.fields import given_fields
from llm_env.text.prompts import RawPrompt, checked_prompt
from llm_env.text.records import read_records
from llm_env.text.texts import RESPONSE_FIELDS, TextRecord, checked_finished

_LABELS = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True)
class Labeled:
    """A response that somebody found good, or bad.

    Attributes:
        prompt: The prompt, a text or chat messages.
        response: The response's text.
        is_good: Whether it was found good.
        finished: Whether it ended by itself; False where it was cut off.
        where: File and line that it was read from, for errors.
    """

    prompt: RawPrompt
    response: str
    is_good: bool
    finished: bool = True
    where: str = field(default="", compare=False)

    @property
    def text(self) -> TextRecord:
        """The response as a text to learn from."""
        return TextRecord(self.prompt, self.response, self.finished)

    def to_json(self) -> dict[str, Any]:
        """Makes the record of a line."""
        record = {"prompt": self.prompt, "completion": self.response, "label": self.is_good}
        return record if self.finished else {**record, "finished": False}


def is_labeled(source: str | Path, option: str = "preferences") -> bool:
    """Whether a file's first record is a single response with a label, and no ranking, pair or stars.

    Raises:
        FileNotFoundError, ValueError: it cannot be read.
    """
    records = read_records(source, option)
    first = records[0][1] if records else None
    names = set(given_fields(first)) if isinstance(first, dict) else set()
    return "label" in names and not {"ranking", "chosen", "stars"} & names


def read_labeled(source: str | Path, option: str = "preferences") -> list[Labeled]:
    """Reads a file of single responses with labels.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a record is broken, or there are none; file and line are named.
    """
    labeled = [_labeled(where, record) for where, record in read_records(source, option)]
    if not labeled:
        raise ValueError(f"{option}={str(source)!r} is empty; at least one is needed.")
    return labeled


def _labeled(where: str, record: Any) -> Labeled:
    record = given_fields(record) if isinstance(record, dict) else record
    name = next((n for n in RESPONSE_FIELDS if isinstance(record, dict) and n in record), None)
    if name is None or "prompt" not in record or "label" not in record:
        raise ValueError(f"{where}: needs 'prompt', 'completion' and 'label', as the first record of the file has.")
    response, label, finished = record[name], record["label"], checked_finished(where, record)
    if isinstance(response, list):  # TRL's conversational form: one message of the assistant
        response = checked_prompt(f"{where}: {name}", response)[-1]["content"]  # type: ignore[index]
    if not isinstance(response, str) or not response.strip():
        raise ValueError(f"{where}: {name!r} must be a text that is not empty; got {response!r:.80}.")
    label = _LABELS.get(str(label).strip().lower()) if isinstance(label, bool | str | int) else None
    if label is None:
        raise ValueError(f"{where}: label={record['label']!r:.80} must be true (good) or false (bad).")
    return Labeled(checked_prompt(where, record["prompt"]), response, label, finished, where)
