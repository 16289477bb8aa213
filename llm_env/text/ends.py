"""Where a turn of the policy ends by what was said: at an end token, or with a text (a stop string)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

BYTES_PER_CHARACTER = 4
"""A character may be spread over that many tokens, one for each of its bytes (UTF-8)."""


class TurnEnds:
    """Says with which token a turn has ended; without a world a response has one turn.

    Args:
        eos_ids: End tokens.
        stop_strings: Texts that end a turn as soon as it contains one. The token that completes it stays as it is, with what
            stands in it behind the text.
        decode: The text of tokens.
    """

    def __init__(
        self, eos_ids: Collection[int], stop_strings: Sequence[str], decode: Callable[[Sequence[int]], str]
    ) -> None:
        self.eos_ids = frozenset(eos_ids)
        self.stop_strings = tuple(stop_strings)
        self._decode = decode
        self._last_characters = {stop[-1] for stop in self.stop_strings}
        # A text that begins in a token's middle and ends in another's: so many tokens hold it.
        self._reach = BYTES_PER_CHARACTER * max(map(len, self.stop_strings), default=0)
        self._may_complete: dict[int, bool] = {}

    def end_of(self, ids: Sequence[int], start: int = 0) -> str:
        """Why a turn has ended with its last token; empty where it has not.

        Args:
            ids: Tokens, of which the turn's are the last: at least one, none of which but the last ended it.
            start: The place of the turn's first token among them.

        Returns:
            ``end_token``, ``stop_string`` or nothing.
        """
        token = ids[-1]
        if token in self.eos_ids:
            return "end_token"
        if self.stop_strings and self._completes(token):
            text = self._decode(ids[max(start, len(ids) - self._reach) :])
            if any(stop in text for stop in self.stop_strings):
                return "stop_string"
        return ""

    def _completes(self, token: int) -> bool:
        """Whether a token can be the last of a stop string: most cannot, and their turns need not be decoded."""
        if token not in self._may_complete:
            # Twice, since tokenizers drop a space before the first token of a text.
            text = self._decode([token, token])
            is_part_of_a_character = "\ufffd" in text
            self._may_complete[token] = is_part_of_a_character or not self._last_characters.isdisjoint(text)
        return self._may_complete[token]
