"""Texts to learn from: plain ones, prompts with responses, and conversations; read from files and encoded.

A source is a file (``.txt``: one text a line; ``.jsonl``, ``.json``, ``.csv``, ``.parquet``) or a dataset id, as for prompts. A
record has

- ``prompt`` (a text, or a list of messages) and ``response`` (or ``completion``); ``"finished": false`` where it was cut off,
- ``messages``, the last of them the assistant's: everything before it is the prompt; or
- ``text``.

Prompt and response are encoded apart, as in the environment, so that a policy learns to continue exactly the tokens that
the environment asks it to continue.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from llm_env.text.encoding import text_ids
from llm_env.text.prompts import RawPrompt, checked_prompt, encode_prompt
from llm_env.text.records import read_records

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RESPONSE_FIELDS = ("response", "completion")


class TextRecord(NamedTuple):
    """A text to learn from.

    Attributes:
        prompt: The prompt before the response; None for a plain text.
        response: The response, or the plain text.
        finished: Whether the response was finished; one that was cut off gets no end token.
    """

    prompt: RawPrompt | None
    response: str
    finished: bool = True


class EncodedText(NamedTuple):
    """An encoded text.

    Attributes:
        ids: Tokens of prompt, response and end token.
        start: Index of the first token that is to be learned, at least 1.
    """

    ids: list[int]
    start: int


def response_after(prompt: str, response: str) -> str:
    """A response as it stands behind its prompt: with a space before it where neither of the two has one.

    Args:
        prompt: Text of the prompt, after the chat template if it has one.
        response: The response's text; an empty one stays empty.
    """
    return response if not response or response[0].isspace() or prompt[-1:].isspace() else f" {response}"


def read_texts(source: str | Path, option: str = "texts") -> list[TextRecord]:
    """Reads the records of a file or dataset.

    Args:
        source: One of the sources in the module's docstring.
        option: The option that it came from, for error messages.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a record is broken or empty (its line is named), or there are none.
    """
    located = read_records(source, option)
    if not located:
        raise ValueError(f"{option}={str(source)!r} is empty; at least one text is needed.")
    return [_record(where, record) for where, record in located]


def _record(where: str, record: Any) -> TextRecord:
    if isinstance(record, str):
        record = {"text": record}
    if not isinstance(record, dict):
        raise ValueError(f"{where}: a record is an object with 'prompt' and 'response', 'messages' or 'text'.")
    field = next((name for name in RESPONSE_FIELDS if name in record), None)
    if field is not None and "prompt" in record:
        finished = checked_finished(where, record)
        return TextRecord(checked_prompt(where, record["prompt"]), _text(where, field, record[field]), finished)
    if "messages" in record:
        messages = checked_prompt(where, record["messages"])
        if isinstance(messages, str) or len(messages) < 2 or messages[-1]["role"] != "assistant":
            raise ValueError(f"{where}: the last of at least two messages must be the assistant's.")
        return TextRecord(messages[:-1], _text(where, "messages", messages[-1]["content"]))
    if "text" in record:
        return TextRecord(None, _text(where, "text", record["text"]))
    raise ValueError(
        f"{where}: needs 'prompt' and 'response', or 'messages', or 'text'; it has {', '.join(map(str, record))}."
    )


def checked_finished(where: str, record: Mapping[str, Any], name: str = "finished") -> bool:
    """Whether a record's response ended by itself, as it does where nothing is said; a text as CSV has it counts as its value.

    Args:
        where: Where the record comes from, as ``file, line 3``, for the error.
        record: The record's fields.
        name: The field that says so.

    Raises:
        ValueError: it is neither true nor false.
    """
    value = record.get(name)
    if value is None or value == "":  # as tables have it
        return True
    said = {"true": True, "false": False}.get(value.strip().lower()) if isinstance(value, str) else value
    if not isinstance(said, bool):
        raise ValueError(f"{where}: {name}={value!r:.80} must be true or false.")
    return said


def _text(where: str, field: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where}: {field!r} must be a text that is not empty; got {value!r:.80}.")
    return value


def encode_text(
    record: TextRecord, tokenizer: PreTrainedTokenizerBase, max_prompt_length: int | None = None
) -> EncodedText:
    """Prompt, response and end token as ids. What is to be learned is the response; of a plain text, everything.

    Args:
        record: The text to encode.
        tokenizer: The tokenizer of the model that learns it.
        max_prompt_length: Most tokens of the prompt; longer ones are cut on the left, as in the environment. None: no limit.
    """
    end = end_ids(tokenizer, record.finished)
    if record.prompt is None:
        ids = text_ids(record.response, tokenizer, frame=True)
        # Some tokenizers close every text with the end token themselves.
        if not end or ids[-1:] != end:
            ids += end
        return EncodedText(ids, 1)
    prompt, _ = encode_prompt(record.prompt, tokenizer, max_prompt_length or 10**9)
    response = record.response if prompt.messages else response_after(prompt.text, record.response)
    ids = [*prompt.ids, *encode_response(response, tokenizer)]
    return EncodedText([*ids, *end], len(prompt.ids))


def end_ids(tokenizer: PreTrainedTokenizerBase, finished: bool = True) -> list[int]:
    """The end token that stands behind a response, as a list of one id.

    Args:
        tokenizer: The tokenizer of the model that learns or scores the response.
        finished: Whether the response was finished; one that was cut off has no end token.

    Returns:
        Empty too where the tokenizer has no end token.
    """
    return [int(tokenizer.eos_token_id)] if finished and tokenizer.eos_token_id is not None else []


def encode_response(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids of a text that continues another, without special tokens."""
    return text_ids(text, tokenizer)
