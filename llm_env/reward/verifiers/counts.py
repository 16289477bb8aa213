"""Counting a text's words, sentences and other parts."""

from __future__ import annotations

import re
from collections.abc import Callable

_WORD = re.compile(r"\w+")
_SENTENCE_END = re.compile(r"[.!?…。！？]+[\"'”’)\]]*(?=\s|$)")
_ABBREVIATION = re.compile(r"(?:\b(?:Mr|Mrs|Ms|Dr|Prof|Sr|Jr|St|vs|etc|e\.g|i\.e|[A-Z])|\b[A-Z](?:\.[A-Z])+)\.$")


def words(text: str) -> int:
    """Number of words: runs of letters, digits and underscores."""
    return len(_WORD.findall(text))


def sentences(text: str) -> int:
    """Number of sentences: parts that end with ``.``, ``!`` or ``?`` before a space or the end; abbreviations end none."""
    count, start = 0, 0
    for match in _SENTENCE_END.finditer(text):
        part = text[start : match.end()]
        rest = text[match.end() :].strip()
        if rest and _ABBREVIATION.search(part):
            continue
        if _WORD.search(part):
            count += 1
            start = match.end()
    return count + bool(_WORD.search(text[start:]))


def lines(text: str) -> int:
    """Number of lines that are not empty."""
    return sum(bool(line.strip()) for line in text.split("\n"))


def paragraphs(text: str) -> int:
    """Number of paragraphs, with empty lines between them."""
    return sum(bool(part.strip()) for part in re.split(r"\n\s*\n", text))


COUNTS: dict[str, Callable[[str], int]] = {
    "words": words,
    "characters": len,
    "sentences": sentences,
    "lines": lines,
    "paragraphs": paragraphs,
}
"""What counts each unit."""
