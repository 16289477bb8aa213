"""What was said in conversations and what people found of it, on the disk at once and in the formats that other commands read.

OUT/events.jsonl          everything in order: answers, thumbs, choices; from it the others are made again
OUT/conversations.jsonl   the conversations, {"id": …, "messages": […]}
OUT/thumbs.jsonl          answers with thumbs, {"prompt": …, "completion": …, "label": true}: KTO
OUT/rankings.jsonl        which of two answers was better: every command that reads rankings
"""

from __future__ import annotations

import dataclasses
import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from agents.chat.speaker import Answer, Token
from agents.preferences.records import Candidates, Ranking, Response, append_jsonl, drop_unfinished_line, write_jsonl
from llm_env.text.prompts import Message, RawPrompt, checked_prompt
from llm_env.text.records import read_records

TIE = -1
"""The choice that both answers are equally good."""


@dataclass
class Turn:
    """A user's message and what was answered.

    Attributes:
        message: What the user wrote.
        prompt: What the actors were asked.
        answers: One, or two that are compared.
        thumbs: Whether an answer was found good, by its number.
        better: Number of the better answer, or `TIE`; None: nobody has said.
    """

    message: str
    prompt: RawPrompt
    answers: list[Answer]
    thumbs: dict[int, bool] = field(default_factory=dict)
    better: int | None = None

    @property
    def kept(self) -> int:
        """Number of the answer that the conversation goes on with: the better one, else the first."""
        return max(0, self.better or 0)

    @property
    def is_open(self) -> bool:
        """Whether somebody has to say which answer is better, before the conversation goes on."""
        return len(self.answers) > 1 and self.better is None


@dataclass
class Conversation:
    """A conversation.

    Attributes:
        id: What it is called in the files: ``c`` and its number in the folder.
        person: Who talks with the actors.
        turns: What was said.
    """

    id: str
    person: str
    turns: list[Turn] = field(default_factory=list)

    def messages(self, system: str | None = None) -> list[Message]:
        """What was said, as chat messages: of two answers the one that was kept."""
        messages = [{"role": "system", "content": system}] if system else []
        for turn in self.turns:
            messages.append({"role": "user", "content": turn.message})
            messages.append({"role": "assistant", "content": turn.answers[turn.kept].text})
        return messages

    def order(self, number: int) -> list[int]:
        """The order in which a turn's answers are shown: random, and the same again after a restart."""
        seed = int.from_bytes(hashlib.sha256(f"{self.id}\n{number}".encode()).digest()[:8], "big")
        count = len(self.turns[number].answers)
        return [int(i) for i in np.random.default_rng(seed).permutation(count)]


class ChatLog:
    """The conversations of a folder.

    Args:
        folder: Where they are kept; what is there is read.

    Raises:
        ValueError: ``events.jsonl`` is broken; file and line are named.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "events.jsonl"
        self.conversations: dict[str, Conversation] = {}
        self._lock = threading.RLock()  # gradio answers requests in threads
        drop_unfinished_line(self.path)
        if self.path.is_file() and self.path.stat().st_size:
            for where, event in read_records(self.path, "events"):
                try:
                    self._apply(event)
                except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
                    raise ValueError(f"{where}: no event of a chat ({error!r:.80}). Remove the line.") from error
            self._write()

    def newest(self, person: str) -> Conversation | None:
        """The person's last conversation; None: there is none."""
        return next((c for c in reversed(list(self.conversations.values())) if c.person == person), None)

    def begin(self, person: str) -> Conversation:
        """A new conversation; it is kept with its first answer."""
        with self._lock:
            number = len(self.conversations)
            while f"c{number}" in self.conversations:
                number += 1
            self.conversations[f"c{number}"] = Conversation(f"c{number}", person)
            return self.conversations[f"c{number}"]

    def add_answers(
        self, conversation: Conversation, message: str, prompt: RawPrompt, answers: Sequence[Answer]
    ) -> None:
        """Keeps a message and the answers to it."""
        given = [dataclasses.asdict(a) | {"tokens": [list(dataclasses.astuple(t)) for t in a.tokens]} for a in answers]
        event = {"person": conversation.person, "message": message, "prompt": prompt, "answers": given}
        self._keep({"event": "answers", "conversation": conversation.id, **event})

    def add_thumb(self, conversation: Conversation, number: int, answer: int, good: bool) -> None:
        """Keeps that an answer of a turn was found good or bad; what was said of it before is replaced."""
        self._keep({"event": "thumb", "conversation": conversation.id, "turn": number, "answer": answer, "good": good})

    def add_choice(self, conversation: Conversation, number: int, better: int) -> None:
        """Keeps which answer of a turn is better, or that both are equally good, `TIE`."""
        self._keep({"event": "choice", "conversation": conversation.id, "turn": number, "better": better})

    def _keep(self, event: dict[str, Any]) -> None:
        with self._lock:
            append_jsonl(self.path, event)
            self._apply(event)
            self._write()

    def _apply(self, event: dict[str, Any]) -> None:
        name, kind = str(event["conversation"]), event["event"]
        if kind == "answers":
            answers = [
                Answer(str(a["actor"]), a["text"], bool(a["finished"]), tuple(Token(*t) for t in a["tokens"]))
                for a in event["answers"]
            ]
            conversation = self.conversations.setdefault(name, Conversation(name, str(event["person"])))
            conversation.turns.append(Turn(event["message"], checked_prompt("event", event["prompt"]), answers))
            return
        turn = self.conversations[name].turns[event["turn"]]
        if kind == "thumb":
            turn.thumbs[range(len(turn.answers))[event["answer"]]] = bool(event["good"])
        elif kind == "choice":
            turn.better = TIE if event["better"] == TIE else range(len(turn.answers))[event["better"]]
        else:
            raise KeyError(kind)

    def _write(self) -> None:
        """Writes the files that follow from the events."""
        conversations, thumbs, rankings = [], [], []
        for c in self.conversations.values():
            if not c.turns:
                continue
            actors = list(dict.fromkeys(t.answers[t.kept].actor for t in c.turns))
            conversations.append({"id": c.id, "messages": c.messages(), "person": c.person, "actors": actors})
            for number, turn in enumerate(c.turns):
                said = [(i, good) for i, good in sorted(turn.thumbs.items()) if turn.answers[i].text.strip()]
                thumbs += [_thumb(turn, i, good, c.person) for i, good in said]
                if turn.better is not None:
                    rankings.append(_ranking(f"{c.id} {number}", turn, c.person))
        write_jsonl(self.folder / "conversations.jsonl", conversations)
        write_jsonl(self.folder / "thumbs.jsonl", thumbs)
        write_jsonl(self.folder / "rankings.jsonl", rankings)


def _thumb(turn: Turn, answer: int, good: bool, person: str) -> dict[str, Any]:
    a = turn.answers[answer]
    record = {"prompt": turn.prompt, "completion": a.text, "label": good, "annotator": person, "source": a.actor}
    return record if a.finished else {**record, "finished": False}


def _ranking(name: str, turn: Turn, person: str) -> dict[str, Any]:
    responses = tuple(Response(f"r{i}", a.text, a.finished, a.actor) for i, a in enumerate(turn.answers))
    tiers = (("r0", "r1"),) if turn.better == TIE else ((f"r{turn.better}",), (f"r{1 - (turn.better or 0)}",))
    return Ranking(Candidates(name, turn.prompt, responses), tiers, person).to_json()
