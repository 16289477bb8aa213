"""What can be done in a conversation, the same on the page and in the terminal."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence

from agents.chat.log import TIE, ChatLog, Conversation, Turn
from agents.chat.speaker import Speaker


class NotNowError(ValueError):
    """Something that cannot be done now; the message says why, for the person who tried."""


class Session:
    """Actors that answer, and the log of it.

    Args:
        speakers: One actor, or two that are compared blind.
        log: Where everything is kept.
        system: A system message that all conversations begin with; None: there is none.
        seed: Makes the answers other ones; a conversation's turn has seeds of its own.
    """

    def __init__(self, speakers: Sequence[Speaker], log: ChatLog, system: str | None = None, seed: int = 0) -> None:
        self.speakers = list(speakers)
        self.log = log
        self.system = system
        self.seed = seed
        self._one_at_a_time = threading.Lock()  # gradio answers requests in threads; models read one text at a time

    @property
    def notes(self) -> list[str]:
        """Why tokens have no KL or no value, in sentences."""
        notes = [note for speaker in self.speakers for note in speaker.notes]
        alone = [s.name for s in self.speakers if not s.has_template]
        if alone:
            notes.append(f"{' and '.join(alone)}: no chat template, so each message is read alone, as plain text.")
        return notes

    def say(self, conversation: Conversation, message: str) -> Turn:
        """Has a message answered; message and answers are on the disk when this returns.

        Raises:
            NotNowError: the message is empty, or the last answers wait for a choice.
            ValueError: an actor's chat template refuses the conversation.
        """
        if not message.strip():
            raise NotNowError("There is nothing to send.")
        if conversation.turns and conversation.turns[-1].is_open:
            raise NotNowError("First say which answer is better: the conversation goes on with that one.")
        messages = [*conversation.messages(self.system), {"role": "user", "content": message}]
        with self._one_at_a_time:
            number = len(conversation.turns)
            answers = [s.answer(messages, self._seed(conversation, number, i)) for i, s in enumerate(self.speakers)]
            self.log.add_answers(conversation, message, self.speakers[0].prompt(messages), answers)
        return conversation.turns[-1]

    def thumb(self, conversation: Conversation, shown: int, good: bool) -> None:
        """Keeps what somebody finds of the last turn's answer that stands at a place.

        Raises:
            NotNowError: there is none.
        """
        answer = self._answer(conversation, shown)
        self.log.add_thumb(conversation, len(conversation.turns) - 1, answer, good)

    def choose(self, conversation: Conversation, shown: int) -> None:
        """Keeps which of the last turn's two answers is better, by its place; `TIE` says that both are as good.

        Raises:
            NotNowError: there are no two answers.
        """
        if not conversation.turns or len(conversation.turns[-1].answers) < 2:
            raise NotNowError("There are no two answers to choose from.")
        better = TIE if shown == TIE else self._answer(conversation, shown)
        self.log.add_choice(conversation, len(conversation.turns) - 1, better)

    def _answer(self, conversation: Conversation, shown: int) -> int:
        """The number of the last turn's answer that stands at a place, 0 or 1."""
        if not conversation.turns or not 0 <= shown < len(conversation.turns[-1].answers):
            raise NotNowError("There is no answer yet.")
        return conversation.order(len(conversation.turns) - 1)[shown]

    def _seed(self, conversation: Conversation, number: int, speaker: int) -> int:
        text = f"{self.seed}\n{conversation.id}\n{number}\n{speaker}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
