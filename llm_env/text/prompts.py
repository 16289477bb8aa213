"""Prompts: where they come from, how they are tokenized, in which order they are asked.

A prompt is a text, or a list of chat messages that the tokenizer's chat template renders. The source is a list of
either or of records, a file (``.txt``: one a line; ``.jsonl``, ``.json``, ``.csv``, ``.parquet``: records with a field
``prompt``, ``messages``, ``text`` or ``question``), or the id of a dataset for `datasets.load_dataset`, with an optional split:
``"stanfordnlp/imdb:train"``; or a task of reasoning-gym, ``"reasoning_gym:basic_arithmetic?size=1000"``. A record's other
fields are the prompt's columns, which rewards may name.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from llm_env.text.columns import plain_columns, shared_names
from llm_env.text.encoding import chat_ids, text_ids
from llm_env.text.records import read_records

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message: TypeAlias = dict[str, str]
RawPrompt: TypeAlias = str | list[Message]

PROMPT_FIELDS = ("prompt", "messages", "text", "question")
"""The fields of a record that may hold its prompt; the first of them that is there does."""


@dataclass(frozen=True)
class PromptRecord:
    """A prompt with what else its record holds.

    Attributes:
        prompt: The prompt, a text or chat messages.
        columns: The record's other fields, in its order; plain JSON values.
        where: Where it comes from, as ``file, line 3``, for error messages.
    """

    prompt: RawPrompt
    columns: Mapping[str, Any] = field(default_factory=dict, hash=False)
    where: str = field(default="", compare=False)

    def to_json(self) -> dict[str, Any]:
        """The record for a line of a file that `read_prompts` reads."""
        return {"prompt" if isinstance(self.prompt, str) else "messages": self.prompt, **self.columns}


PromptSource: TypeAlias = str | Path | Sequence[RawPrompt | Mapping[str, Any] | PromptRecord]


@dataclass(frozen=True)
class Prompt:
    """A prompt, ready to be continued.

    Attributes:
        text: The prompt's text; for chat messages, what the chat template made of them.
        ids: The prompt's tokens, at least one.
        messages: The chat messages as (role, content) pairs; None for a plain text.
        index: Place of the prompt in the prompt set; None for a prompt from outside, as in ``reset(options=…)``.
        columns: The other fields of the prompt's record, those that all records of the prompt set have; plain JSON values.
    """

    text: str
    ids: tuple[int, ...]
    messages: tuple[tuple[str, str], ...] | None = None
    index: int | None = None
    columns: Mapping[str, Any] = field(default_factory=dict, hash=False)


def read_prompts(source: PromptSource, option: str = "prompts") -> list[PromptRecord]:
    """Reads prompts, and what else their records hold, from a list, a file or a dataset id.

    Args:
        source: One of the sources in the module's docstring.
        option: The option that it came from, for error messages.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a record is broken or empty (with its line number), there are no prompts, or no usable column.
    """
    if isinstance(source, str | Path):
        name = str(source)
        located = read_records(source, option)
    else:
        name = "the list of prompts"
        located = [(f"{option}[{i}]", record) for i, record in enumerate(source)]
    if not located:
        raise ValueError(f"{option}: {name} is empty; at least one prompt is needed.")
    return [prompt_record(where, record) for where, record in located]


def prompt_record(where: str, record: Any) -> PromptRecord:
    """The prompt and the columns of a record.

    Args:
        where: Where it comes from, as ``file, line 3``, for error messages.
        record: A prompt, or a mapping with one under a name of `PROMPT_FIELDS`. A `PromptRecord` is returned as it is.

    Raises:
        ValueError: it has no prompt, or one that is empty or malformed; the error begins with `where`.
    """
    if isinstance(record, PromptRecord):
        return record
    if not isinstance(record, Mapping):
        return PromptRecord(checked_prompt(where, record), {}, where)
    name = next((name for name in PROMPT_FIELDS if name in record), None)
    if name is None:
        raise ValueError(
            f"{where}: needs a field named {', '.join(PROMPT_FIELDS[:-1])} or {PROMPT_FIELDS[-1]}; it has {list(record)}."
        )
    return PromptRecord(checked_prompt(where, record[name]), plain_columns(record, name), where)


def checked_prompt(where: str, prompt: Any) -> RawPrompt:
    """Makes sure that something is a prompt.

    Args:
        where: Where it comes from, as ``file, line 3``, for error messages.
        prompt: A text, or a sequence of messages with ``role`` and ``content``.

    Returns:
        The text, or the messages as new dictionaries of role and content only.

    Raises:
        ValueError: it is empty or malformed; the error begins with `where`.
    """
    if isinstance(prompt, str):
        if not prompt.strip():
            raise ValueError(f"{where}: the prompt is empty. Remove the record or give it a text.")
        return prompt
    if isinstance(prompt, list | tuple | np.ndarray) and len(prompt):
        messages = [dict(m) if isinstance(m, dict) else m for m in prompt]
        for i, message in enumerate(messages):
            if not isinstance(message, dict) or not isinstance(message.get("role"), str):
                raise ValueError(f"{where}: message {i} needs a 'role' and a 'content' text; got {message!r}.")
            if not isinstance(message.get("content"), str):
                raise ValueError(f"{where}: message {i} needs a 'content' text; got {message!r}.")
        if not any(m["content"].strip() for m in messages):
            raise ValueError(f"{where}: the prompt's messages are all empty.")
        return [{"role": m["role"], "content": m["content"]} for m in messages]
    raise ValueError(f"{where}: a prompt is a text or a list of messages; got {type(prompt).__name__} {prompt!r:.80}.")


def encode_prompt(
    raw: RawPrompt,
    tokenizer: PreTrainedTokenizerBase,
    max_prompt_length: int,
    index: int | None = None,
    columns: Mapping[str, Any] | None = None,
    tools: Sequence[dict[str, Any]] | None = None,
) -> tuple[Prompt, int]:
    """Tokenizes one prompt and cuts it on the left to `max_prompt_length` tokens.

    Args:
        raw: A text, or chat messages that the tokenizer's chat template renders.
        tokenizer: The tokenizer of the model that will continue the prompt.
        max_prompt_length: Most tokens to keep; the last ones are kept.
        index: Place of the prompt in the prompt set; None if it is in none.
        columns: The other fields of the prompt's record.
        tools: JSON schemas of tools, for a chat template that knows them.

    Returns:
        The prompt and the number of tokens cut off.

    Raises:
        ValueError: messages without a chat template or that it refuses, or nothing is left of the prompt.
    """
    if isinstance(raw, str):
        text, ids = raw, text_ids(raw, tokenizer, frame=True)
        messages = None
        if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id:
            ids = ids[:-1]  # some tokenizers close every text; a prompt goes on
    else:
        if tokenizer.chat_template is None:
            raise ValueError(
                "A prompt is a list of chat messages, but the tokenizer has no chat template. "
                "Give plain texts, or set tokenizer.chat_template and save the model folder again."
            )
        text, ids = chat_ids(raw, tokenizer, add_generation_prompt=True, tools=tools)
        messages = tuple((m["role"], m["content"]) for m in raw)
    # A text without tokens can still be continued, from the first token.
    if not ids and tokenizer.bos_token_id is not None:
        ids = [tokenizer.bos_token_id]
    if not ids:
        raise ValueError(f"The prompt {raw!r:.80} has no tokens.")
    cut = max(0, len(ids) - max_prompt_length)
    return Prompt(text, tuple(ids[cut:]), messages, index, dict(columns or {})), cut


class PromptSet:
    """All prompts of an environment, tokenized.

    Args:
        source: One of the sources in the module's docstring.
        tokenizer: The tokenizer of the model that will continue the prompts.
        max_prompt_length: Most tokens of a prompt; longer ones are cut on the left, and one warning counts them.
        option: The option that the source came from, for error messages.

    Attributes:
        records: The prompts as they were read, with all their columns.
        prompts: The prompts encoded, with the columns that all of them have.

    Raises:
        FileNotFoundError, ValueError: as `read_prompts` and `encode_prompt`.
    """

    def __init__(
        self,
        source: PromptSource,
        tokenizer: PreTrainedTokenizerBase,
        max_prompt_length: int,
        option: str = "prompts",
    ) -> None:
        self.tokenizer = tokenizer
        self.max_prompt_length = max_prompt_length
        self.records = read_prompts(source, option)
        names = shared_names([record.columns for record in self.records])
        encoded = [
            encode_prompt(r.prompt, tokenizer, max_prompt_length, index, {name: r.columns[name] for name in names})
            for index, r in enumerate(self.records)
        ]
        self.prompts = [prompt for prompt, _ in encoded]
        cuts = [cut for _, cut in encoded if cut]
        if cuts:
            warnings.warn(
                f"{option}: {len(cuts)} of {len(encoded)} prompts are longer than max_prompt_length={max_prompt_length} tokens "
                f"and were cut on the left, by up to {max(cuts)} tokens. Raise max_prompt_length to keep them whole.",
                stacklevel=2,
            )

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: int) -> Prompt:
        return self.prompts[index]

    def spread(self, count: int) -> list[Prompt]:
        """At most `count` prompts, drawn from all over the set, because neighbors in a file are often alike.

        The draw is always the same.
        """
        order = np.random.default_rng(0).permutation(len(self.prompts))
        return [self.prompts[i] for i in order[:count]]

    def encode(self, raw: Any) -> Prompt:
        """A prompt from outside the set, or a record with one, cut as those in it; a cut is warned about.

        Raises:
            ValueError: it is empty or malformed.
        """
        record = prompt_record("options['prompt']", raw)
        prompt, cut = encode_prompt(record.prompt, self.tokenizer, self.max_prompt_length, columns=record.columns)
        if cut:
            warnings.warn(
                f"The prompt is longer than max_prompt_length={self.max_prompt_length} tokens and was cut on the left "
                f"by {cut} tokens.",
                stacklevel=3,
            )
        return prompt


class NoPrompts:
    """Stands for a prompt set where there is none: with a world, whose episodes differ by its seed alone.

    Args:
        tokenizer: The tokenizer of the model that will continue what the world says.
        max_prompt_length: Most tokens of a prompt from ``reset(options=…)``.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_prompt_length: int) -> None:
        self.tokenizer = tokenizer
        self.max_prompt_length = max_prompt_length
        self.records: list[PromptRecord] = []

    def __len__(self) -> int:
        return 0

    def __getitem__(self, index: int) -> Prompt:
        raise IndexError("There are no prompts: the world begins each episode by itself.")

    def spread(self, count: int) -> list[None]:
        """`count` episodes that begin without a prompt."""
        return [None] * count

    def encode(self, raw: Any) -> Prompt:
        """A prompt from outside; see `PromptSet.encode`."""
        record = prompt_record("options['prompt']", raw)
        return encode_prompt(record.prompt, self.tokenizer, self.max_prompt_length, columns=record.columns)[0]


class PromptOrder:
    """Indices of prompts, each once before any comes twice, shuffled anew for every pass.

    Args:
        n_prompts: Number of prompts to go through, at least 1.
        rng: Random generator that shuffles them.
    """

    def __init__(self, n_prompts: int, rng: np.random.Generator) -> None:
        self.n_prompts = n_prompts
        self.rng = rng
        self._left: list[int] = []

    def next(self) -> int:
        """The index of the next prompt."""
        if not self._left:
            self._left = self.rng.permutation(self.n_prompts).tolist()
        return self._left.pop()

    def state_dict(self) -> dict[str, Any]:
        """What is left of this pass, and the generator's state, in plain values."""
        return {"left": list(self._left), "rng": self.rng.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self._left = list(state["left"])
        self.rng.bit_generator.state = state["rng"]
