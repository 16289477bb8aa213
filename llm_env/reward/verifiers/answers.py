r"""Where a response says its answer: after ``####``, in ``\boxed{…}``, or between ``<answer>`` and ``</answer>``."""

from __future__ import annotations

import re

PLACES = ("auto", "hash", "boxed", "tag", "last_line", "whole")
_HASH = re.compile(r"####(.*)")
_TAG = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL | re.IGNORECASE)
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")


def check_place(place: str) -> None:
    """Refuses a name that is none of `PLACES`.

    Raises:
        ValueError: it is none of them.
    """
    if place not in PLACES:
        raise ValueError(f"extract={place!r} is not known; use one of {', '.join(PLACES)}.")


def find_answer(text: str, place: str = "auto") -> str | None:
    r"""The answer that a text gives, without spaces around it; None where it marks none.

    Args:
        text: What the policy wrote, or a column that marks its answer the same way, as GSM8K's.
        place: ``hash``: what follows the last ``####`` on its line; ``boxed``: in the last whole ``\boxed{…}``; ``tag``: in the
            last ``<answer>…</answer>``; ``auto``: whichever of these three begins last; ``last_line``: the last line that is
            not empty; ``whole``: the text.
    """
    if place == "whole":
        return text.strip()
    if place == "last_line":
        return text.strip().rpartition("\n")[2].strip() or None
    found: list[tuple[int, str]] = []
    if place in ("auto", "hash"):
        found += [(m.start(), m[1]) for m in _HASH.finditer(text)]
    if place in ("auto", "tag"):
        found += [(m.start(), m[1]) for m in _TAG.finditer(text)]
    if place in ("auto", "boxed"):
        found += boxes(text)
    return max(found)[1].strip() if found else None


def boxes(text: str) -> list[tuple[int, str]]:
    r"""Start and content of each ``\boxed{…}`` that is closed; braces inside are matched."""
    found = []
    for match in _BOX.finditer(text):
        depth = 1
        for i in range(match.end(), len(text)):
            if text[i] in "{}" and text[i - 1] != "\\":
                depth += 1 if text[i] == "{" else -1
            if not depth:
                found.append((match.start(), text[match.end() : i]))
                break
    return found
