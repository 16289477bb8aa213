"""How a world's texts become tokens behind the policy's: each is encoded once, and nothing is decoded and encoded again.

The state after a turn is ``ids so far + the policy's ids + suffix``, and only the suffix is made here:

- Without a chat template, texts follow each other as plain text. The policy's end token stays where it is; behind it the
  world's text stands on lines of its own: a line feed, the text, a line feed.
- With a chat template, the world's text is a user message, and the suffix is what the template writes between the assistant's
  end token and the assistant's next turn. A turn that did not end with the template's end token (it was cut at a length cap,
  or ended with another of the model's end tokens) gets that token as the first of the suffix, which is the world's: nobody
  chose it.

A template that writes earlier turns otherwise once others follow is refused: the state would not be what the template means.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from llm_env.text.encoding import chat_ids, text_ids
from llm_env.text.prompts import Message, RawPrompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ASKED: list[Message] = [{"role": "user", "content": "Hello"}]
"""What stands before a turn where only the template's frame is of interest."""
SAID = ("Yes.", "<think>\nHm.\n</think>\n\nYes.")
"""Turns of an assistant that a template has to leave alone, the second with a thought."""
CHARS_PER_TOKEN = 64
"""A text longer than this for each token that it may have is cut before it is encoded."""


class Suffix(NamedTuple):
    """What follows a turn of the policy.

    Attributes:
        text: The world's text.
        ids: The tokens that are appended to the state.
        cut: Tokens of the text that were cut off.
    """

    text: str
    ids: list[int]
    cut: int


class TurnEncoder:
    """Encodes what a world says.

    Args:
        tokenizer: The actor's tokenizer.
        eos_ids: Tokens that end a turn.
        max_world_tokens: Most tokens of one text of the world; the rest is cut off at its end.

    Attributes:
        in_chat: Whether texts are messages of a chat.

    Raises:
        ValueError: the chat template rewrites earlier turns, or writes no end token behind an assistant's turn.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, eos_ids: frozenset[int], max_world_tokens: int) -> None:
        self.tokenizer = tokenizer
        self.max_world_tokens = max_world_tokens
        self.in_chat = tokenizer.chat_template is not None
        self._frame: list[int] = []  # a chat up to the end token of its assistant's turn, and the turn's end token
        if self.in_chat:
            frames = [self._up_to_end_token(said, eos_ids) for said in SAID]
            for said, frame in zip(SAID, frames, strict=True):
                whole = self._chat([*_told(said), *ASKED], more=True)
                if whole[: len(frame)] != frame:
                    raise ValueError(
                        "The tokenizer's chat template writes earlier turns otherwise once others follow (it drops thoughts, "
                        "say), so a growing conversation would not be what the template means. Save the model folder with a "
                        "template that keeps what was written."
                    )
            self._frame = frames[0]

    def first(self, observation: RawPrompt) -> RawPrompt:
        """What a world says at its reset, as a prompt: with a chat template, messages."""
        if self.in_chat and isinstance(observation, str):
            return [{"role": "user", "content": observation}]
        return observation

    def suffix(self, observation: RawPrompt, last_id: int, goes_on: bool) -> Suffix:
        """What a world says to a turn.

        Args:
            observation: A text, or messages.
            last_id: The turn's last token.
            goes_on: Whether another turn of the policy follows.

        Raises:
            ValueError: messages without a chat template, or the template refuses them.
        """
        messages = [{"role": "user", "content": observation}] if isinstance(observation, str) else observation
        shown, cut = self._shortened(messages)
        text = "\n".join(m["content"] for m in shown)
        if not self.in_chat:
            if not isinstance(observation, str):
                raise ValueError("The world answers with chat messages, but the tokenizer has no chat template.")
            return Suffix(text, text_ids(f"\n{text}\n" if text else "\n", self.tokenizer), cut)
        whole = self._chat([*_told(SAID[0]), *shown], more=goes_on)
        if whole[: len(self._frame)] != self._frame:
            raise ValueError(
                "The tokenizer's chat template writes earlier turns otherwise for what the world answered."
            )
        end_token = self._frame[-1]
        missing = [] if last_id == end_token else [end_token]
        return Suffix(text, [*missing, *whole[len(self._frame) :]], cut)

    def _shortened(self, messages: Sequence[Message]) -> tuple[list[Message], int]:
        """Messages of at most `max_world_tokens` tokens, and how many tokens were cut off; the first ones stay."""
        left, cut, shown = self.max_world_tokens, 0, []
        for message in messages:
            content = message["content"]
            kept = content[: max(1, left) * CHARS_PER_TOKEN]
            ids = text_ids(kept, self.tokenizer)
            beyond = len(ids) - left
            if beyond > 0:
                # The text is cut, not what stands in the state: it is not encoded yet.
                kept = str(self.tokenizer.decode(ids[:left], skip_special_tokens=False)) if left else ""
            if beyond > 0 or len(kept) < len(content):
                cut += max(1, beyond)
            left -= min(left, len(ids))
            shown.append({**message, "content": kept})
        return shown, cut

    def _up_to_end_token(self, said: str, eos_ids: frozenset[int]) -> list[int]:
        """A chat of one question and one answer, up to the end token behind the answer.

        Raises:
            ValueError: the template writes none.
        """
        ids = self._chat(_told(said), more=False)
        ends = [place for place, token in enumerate(ids) if token in eos_ids]
        begun = len(self._chat(ASKED, more=True))
        if not ends or ends[-1] < begun:
            raise ValueError(
                "The tokenizer's chat template writes none of the model's end tokens behind an assistant's message, so no turn "
                "could end as the template means it. Name its end token in the model's generation config."
            )
        return ids[: ends[-1] + 1]

    def _chat(self, messages: Sequence[Message], more: bool) -> list[int]:
        return chat_ids(messages, self.tokenizer, add_generation_prompt=more)[1]


def _told(said: str) -> list[Message]:
    return [*ASKED, {"role": "assistant", "content": said}]
