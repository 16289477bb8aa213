"""Texts on a terminal: what would move the cursor, hide text or turn it round is shown by its number instead."""

from __future__ import annotations

import re

UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters but for tabs and line feeds, ESC among them
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # marks that change the direction of writing
    "\u2028\u2029"  # ends of lines to some terminals
    "\ud800-\udfff]"  # halves of characters, which cannot be encoded
)


def printable(text: str) -> str:
    r"""A text in which characters that steer a terminal are escapes such as ``\x1b`` or ``\u202e``."""
    return UNPRINTABLE.sub(lambda found: _escape(ord(found[0])), text)


def _escape(code: int) -> str:
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
