"""What a judge was asked and replied, kept at once, so that after an interruption only what is missing is asked."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.preferences.records import append_jsonl, drop_unfinished_line
from llm_env.reward.judges.reading import Reply
from llm_env.rules import number
from llm_env.text.records import read_records

FILE = "judgments.jsonl"
_SHARE = number(least=0, most=1)


@dataclass(frozen=True)
class Question:
    """A question to a judge.

    Attributes:
        text: The whole instruction.
        id: Name of the prompt that it is about.
        shown: Ids of the responses, in the order in which they stand in it.
    """

    text: str
    id: str
    shown: tuple[str, ...]


class Journal:
    """A file of questions and replies, one a line; each is on the disk when `add` returns.

    A question is known by a digest of its whole text, so that a judge that is told something else is asked anew. Replies of
    other judges in the same file are left alone.

    Args:
        path: The file, which need not exist. None: nothing is kept.
        judge: The judge's name.
        mode: ``pairwise``, ``grade``, ``correct`` or ``feedback``.
        options: What may be answered; a reply with probabilities has one for each.

    Raises:
        ValueError: a record is broken; file and line are named.
    """

    def __init__(self, path: Path | None, judge: str, mode: str, options: tuple[str, ...]) -> None:
        self.path = path
        self.judge = judge
        self.mode = mode
        self._replies: dict[str, Reply] = {}
        if path is None or not path.is_file():
            return
        drop_unfinished_line(path)
        if not path.stat().st_size:
            return
        for where, record in read_records(path, "judgments"):
            if not isinstance(record, dict) or not isinstance(record.get("key"), str):
                raise ValueError(f"{where}: a judgment is an object with a 'key'. Remove the line; it is asked again.")
            if record.get("judge") == judge and record.get("mode") == mode:
                self._replies[record["key"]] = _reply(where, record, options)

    def reply(self, question: Question) -> Reply | None:
        """The reply to a question; None where it was not asked."""
        return self._replies.get(_key(question))

    def add(self, question: Question, reply: Reply) -> None:
        """Keeps a reply."""
        key = _key(question)
        self._replies[key] = reply
        if self.path is None:
            return
        record: dict[str, Any] = {"key": key, "judge": self.judge, "mode": self.mode, "id": question.id}
        said = {name: value for name, value in vars(reply).items() if value is not None}
        append_jsonl(self.path, {**record, "shown": list(question.shown), **said})


def _key(question: Question) -> str:
    return hashlib.sha256(question.text.encode("utf-8", "surrogatepass")).hexdigest()


def _reply(where: str, record: Mapping[str, Any], options: tuple[str, ...]) -> Reply:
    """Reads a reply from a line of the file."""
    shares, mass, text, finished = (record.get(name) for name in ("shares", "mass", "text", "finished"))
    if shares is not None:
        is_whole = isinstance(shares, dict) and set(shares) == set(options) and all(map(_SHARE.allows, shares.values()))
        if not is_whole:
            raise ValueError(
                f"{where}: 'shares' must give a probability to each of {', '.join(options)}; got {shares!r:.80}. Remove the "
                "line; it is asked again."
            )
    if (
        (shares is None and text is None)
        or not isinstance(text, str | None)
        or not (mass is None or _SHARE.allows(mass))
    ):
        raise ValueError(f"{where}: a judgment has 'shares' or a 'text'. Remove the line; it is asked again.")
    return Reply(shares, mass, text, finished if isinstance(finished, bool) else None)
