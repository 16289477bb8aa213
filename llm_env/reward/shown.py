"""Texts of others in error messages: short, on one line, with nothing in them that a terminal obeys."""

from __future__ import annotations


def quoted(text: str, most: int = 80) -> str:
    """A prompt or a response in quotes; of a long one its beginning and its end."""
    half = most // 2
    return repr(text if len(text) <= most else f"{text[:half]} … {text[-half:]}")


def one_line(text: str, most: int = 300) -> str:
    """A message on one line, cut to a length, with control characters written out."""
    line = " ".join(text.split())
    line = line if len(line) <= most else f"{line[:most]} …"
    # Not only ASCII's control characters: those that turn the direction of writing are not printable either.
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)
