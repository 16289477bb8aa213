"""Texts of others in error messages: short, on one line, with nothing in them that a terminal obeys."""

from __future__ import annotations

from llm_env.text.printable import printable


def quoted(text: str, most: int = 80) -> str:
    """A prompt or a response in quotes; of a long one its beginning and its end."""
    half = most // 2
    return repr(text if len(text) <= most else f"{text[:half]} … {text[-half:]}")


def one_line(text: str, most: int = 300) -> str:
    """A message on one line, cut to a length, with control characters written out."""
    line = " ".join(text.split())
    return printable(line if len(line) <= most else f"{line[:most]} …")
