"""What a model said, read back as a chat message with its tool calls: by the tokenizer's own template of responses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def check_response_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Checks that a tokenizer can read responses back.

    Raises:
        ValueError: it has no template of responses.
    """
    if getattr(tokenizer, "response_template", None) is None:
        raise ValueError(
            "The world takes the policy's turns as chat messages, but the model's tokenizer has no response_template that "
            "would read them (transformers 5.13 has them). Save one with the tokenizer, or have calls found by their tag."
        )


def response_message(
    tokenizer: PreTrainedTokenizerBase,
    ids: Sequence[int],
    before: Sequence[int],
    tools: Sequence[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """A turn as a chat message of the assistant.

    Args:
        tokenizer: The model's tokenizer, which has a template of responses.
        ids: The turn's tokens.
        before: The tokens before it, in which the template finds where the message began.
        tools: Schemas of the tools, which say what types arguments have.

    Returns:
        ``role``, ``content``, and as the template has them ``tool_calls`` and ``reasoning_content``; what cannot be read has
        the whole text as its content, and ``parse_error``.
    """
    known: dict[str, Any] = {"tools": list(tools)} if tools and _takes_tools(tokenizer) else {}
    try:
        message = tokenizer.parse_response(list(ids), prefix=list(before), **known)
    except Exception as error:  # the parser's own kinds: bad JSON, a pattern that does not match
        text = str(tokenizer.decode(list(ids), skip_special_tokens=True))
        return {"role": "assistant", "content": text, "parse_error": " ".join(str(error).split())}
    return {"role": "assistant", "content": "", **message}


def _takes_tools(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether this version of transformers types arguments by the tools' schemas."""
    import inspect

    return "tools" in inspect.signature(tokenizer.parse_response).parameters
