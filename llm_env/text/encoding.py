"""Texts to token ids, so that a text stays a text: what looks like a special token in it does not become one.

Tokenizers turn the characters ``</s>`` into the end token wherever they find them, so a prompt from a file could end a
turn or begin another. Here special tokens come from the tokenizer's own frame and from chat templates only; in a record's
text they are encoded as the characters that they are made of. Texts without such characters get the ids that the tokenizer
gives them. Special are the tokens that the tokenizer marks as special: ``<think>`` and its like, which models write
themselves, are ordinary ones.

What chat templates are given is marked with characters that occur nowhere else, and encoded piece by piece, as
``sanitize_control_tokens`` of transformers 5.23 does; a template that puts a special token together from parts of a
message is beyond it.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")
"""A token for a byte that the vocabulary has no better token for; with whitespace it is never counted as special."""

PRIVATE_USE = range(0xF0000, 0xF1000)
"""Characters that no standard gives a meaning to, among which the marks are chosen."""


class SpecialTokens(NamedTuple):
    """The special tokens of a tokenizer.

    Attributes:
        ids: Their ids.
        unknown: The one that stands for what the vocabulary lacks, which any text may have; None where there is none.
        pattern: Matches any of their texts; None where there are none.
        frame: Those that the tokenizer puts around any text of its own accord, sorted.
    """

    ids: frozenset[int]
    unknown: int | None
    pattern: re.Pattern[str] | None
    frame: list[int]


_TAKES = "special_tokens_in_text"
"""Attribute of a tokenizer that was asked to take special tokens in texts for what they name."""

_KNOWN: weakref.WeakKeyDictionary[PreTrainedTokenizerBase, tuple[int, SpecialTokens]] = weakref.WeakKeyDictionary()
"""Special tokens by tokenizer, with the size that its vocabulary had: tokens may be added."""


def take_special_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    """From now on, special tokens in the texts that this tokenizer object encodes here stand for what they name.

    It is not written to a folder that the tokenizer is saved to.
    """
    setattr(tokenizer, _TAKES, True)


def takes_special_tokens(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether `take_special_tokens` was called for a tokenizer."""
    return bool(getattr(tokenizer, _TAKES, False))


def special_tokens_of(tokenizer: PreTrainedTokenizerBase) -> SpecialTokens:
    """The special tokens of a tokenizer, found once."""
    size = len(tokenizer)
    if tokenizer in _KNOWN and _KNOWN[tokenizer][0] == size:
        return _KNOWN[tokenizer][1]
    texts = {i: token.content for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    texts |= {i: str(tokenizer.convert_ids_to_tokens(i)) for i in tokenizer.all_special_ids}
    texts = {i: text for i, text in texts.items() if text.strip() and not BYTE_TOKEN.fullmatch(text)}
    longest_first = sorted(texts.values(), key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None
    frame = sorted(i for i in _ids("", tokenizer, frame=True) if i in texts)
    found = SpecialTokens(frozenset(texts), tokenizer.unk_token_id, pattern, frame)
    _KNOWN[tokenizer] = (size, found)
    return found


def has_special_tokens(text: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer finds special tokens in a text."""
    special = special_tokens_of(tokenizer)
    found = special.ids.intersection(_ids(text, tokenizer))
    # The unknown token counts where it is spelled out, not where it stands for what the vocabulary lacks.
    spelled_out = special.pattern is not None and special.pattern.search(text) is not None
    return bool(found - {special.unknown}) or (bool(found) and spelled_out)


def text_ids(
    text: str, tokenizer: PreTrainedTokenizerBase, frame: bool = False, special_tokens: bool = False
) -> list[int]:
    """The ids of a text, in which special tokens are characters like any other.

    Args:
        text: The text.
        tokenizer: The tokenizer of the model that reads it.
        frame: Put the tokenizer's own special tokens around it, such as a begin token.
        special_tokens: Take special tokens in this text for what they name, as in the text of a template.

    Raises:
        ValueError: the tokenizer cannot read the text without making a special token of it.
    """
    if special_tokens or takes_special_tokens(tokenizer):
        return _ids(text, tokenizer, frame)
    special = special_tokens_of(tokenizer)
    # Nearly every text: no special token is spelled out in it, and there is none but those of the frame.
    if special.pattern is None or special.pattern.search(text) is None:
        ids = _ids(text, tokenizer, frame)
        if sorted(i for i in ids if i in special.ids) == (special.frame if frame else []):
            return ids
    if not has_special_tokens(text, tokenizer):
        return _ids(text, tokenizer, frame)
    forbidden = special.ids - {special.unknown}
    if forbidden.isdisjoint(_ids(text, tokenizer, split_special_tokens=True)):
        return _ids(text, tokenizer, frame, split_special_tokens=True)
    # Some vocabularies have the special token as an ordinary piece too (unigram, whole words): a space breaks it.
    broken = special.pattern.sub(lambda m: f"{m[0][0]} {m[0][1:]}", text) if special.pattern else text
    if not forbidden.isdisjoint(_ids(broken, tokenizer, split_special_tokens=True)):
        raise ValueError(
            f"The text {text!r:.80} holds a special token, and this tokenizer cannot read it as characters. Remove it from the "
            "text, or turn special_tokens_in_text on."
        )
    return _ids(broken, tokenizer, frame, split_special_tokens=True)


def chat_ids(
    messages: Sequence[dict[str, str]],
    tokenizer: PreTrainedTokenizerBase,
    add_generation_prompt: bool = False,
    tools: Sequence[dict[str, Any]] | None = None,
) -> tuple[str, list[int]]:
    """A chat in the tokenizer's template: its text, and the ids, in which only the template's special tokens are special.

    Args:
        messages: The chat, each message with ``role`` and ``content``.
        tokenizer: The tokenizer, which has a chat template.
        add_generation_prompt: End with what begins the assistant's turn.
        tools: JSON schemas of tools, which a template that knows them writes into the chat.

    Raises:
        ValueError: the template refuses the chat, or the tokenizer cannot read a message as characters.
    """
    text = _render(messages, tokenizer, add_generation_prompt, tools)
    suspects = [value for m in messages for value in m.values() if has_special_tokens(value, tokenizer)]
    # The template writes the tokenizer's frame itself.
    if takes_special_tokens(tokenizer) or not suspects:
        return text, _ids(text, tokenizer)
    pattern = special_tokens_of(tokenizer).pattern
    begin, end = _unused_characters(text + "".join(value for m in messages for value in m.values()))

    def marked(value: str) -> str:
        if value not in suspects:
            return value
        # A tokenizer that changes texts first (to lower case, say) may find what the pattern does not: all of it is marked.
        found = pattern.sub(rf"{begin}\g<0>{end}", value) if pattern else value
        return found if found != value else f"{begin}{value}{end}"

    rendered = _render(
        [{k: marked(v) for k, v in m.items()} for m in messages], tokenizer, add_generation_prompt, tools
    )
    # Text, marked token, text, marked token, …; a mark whose other half the template cut off stands for nothing (None).
    pieces = re.split(rf"{begin}([^{begin}{end}]*){end}|[{begin}{end}]", rendered)
    ids: list[int] = []
    for i, piece in enumerate(pieces):
        if piece:
            ids += text_ids(piece, tokenizer, special_tokens=i % 2 == 0)
    return text, ids


def _ids(text: str, tokenizer: PreTrainedTokenizerBase, frame: bool = False, **kwargs: Any) -> list[int]:
    return list(tokenizer(text, add_special_tokens=frame, **kwargs)["input_ids"])


def _render(
    messages: Sequence[dict[str, str]],
    tokenizer: PreTrainedTokenizerBase,
    add_generation_prompt: bool,
    tools: Sequence[dict[str, Any]] | None,
) -> str:
    """The text that the chat template makes of a chat.

    Raises:
        ValueError: the template refuses the chat, for example because roles do not alternate.
    """
    try:
        return str(
            tokenizer.apply_chat_template(
                list(messages),
                tools=None if tools is None else list(tools),
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
            )
        )
    except Exception as error:  # a template is a small program: it may raise anything
        raise ValueError(f"The chat template refuses the prompt {list(messages)!r:.80}: {error}") from error


def _unused_characters(text: str) -> tuple[str, str]:
    """Two characters for private use that a text does not hold.

    Raises:
        ValueError: it holds all of them.
    """
    free = [chr(code) for code in PRIVATE_USE if chr(code) not in text][:2]
    if len(free) < 2:
        raise ValueError(f"The prompt {text!r:.80} holds all characters of Unicode's private use area A. Remove some.")
    return free[0], free[1]
