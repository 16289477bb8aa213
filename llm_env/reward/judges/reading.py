"""What a judge's reply says: which response is better, or a grade.

A grade is the expected value over the probabilities of the grades, as in Liu et al. 2023, "G-Eval"
(https://arxiv.org/abs/2303.16634), and Lee et al. 2023, "RLAIF" (https://arxiv.org/abs/2309.00267), section 3.1: finer than the
most probable grade, with fewer ties. Where there are no probabilities, the number that was written counts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

TIE = "tie"
LOWEST_GRADE, HIGHEST_GRADE = 1.0, 10.0
_VERDICTS = re.compile(r"A|B|[Tt]ie|TIE")
_GRADES = re.compile(r"\d+(?:\.\d+)?")
_WORDS = re.compile(r"-?\d+(?:\.\d+)?|[^\W\d_]+")
_AROUND = frozenset(
    ("the", "my", "final", "better", "best", "of", "is", "response", "assistant", "answer", "verdict", "choice")
)
_AROUND |= {"grade", "score", "rating", "letter"}
"""Words that may stand before an answer on its line."""
_OF_TEN = re.compile(r"\s*(?:/|out of)\s*10\b")
_THOUGHTS = re.compile(r"^.*?</think>|^\s*<think>.*", re.DOTALL)
_BRACKETS = re.compile(r"\[\[\s*([^\[\]]*?)\s*\]\]")


@dataclass(frozen=True)
class Reply:
    """A judge's reply to one question.

    Attributes:
        shares: Probability of each possible answer, which together are 1. None: not known.
        mass: Probability that the model gave all of them together, before they were divided by it. None: not known.
        text: What the model wrote; None for one whose probabilities were read.
        finished: Whether a text that was asked for ended by itself; None where it is not known.
    """

    shares: Mapping[str, float] | None = None
    mass: float | None = None
    text: str | None = None
    finished: bool | None = None


def verdict_of(reply: Reply) -> str | None:
    """``A``, ``B`` or ``tie``; None where the reply says none of them.

    A text counts where its first or its last line is nothing but the verdict ("B", "Answer: B", "The better response is B."),
    or where one stands in double brackets ([[B]]), the last of them. Where first and last line differ, it says nothing.
    """
    if reply.text is not None:
        said = _said(reply.text, _VERDICTS)
        return TIE if said is not None and said.lower() == TIE else said
    assert reply.shares is not None
    a, b = reply.shares["A"], reply.shares["B"]
    return TIE if a == b else "A" if a > b else "B"


def letter_of(reply: Reply, letters: Sequence[str]) -> str | None:
    """The most probable of some letters, or the one that was written; None where the reply says none, or two are equal."""
    if reply.text is not None:
        return _said(reply.text, re.compile("|".join(letters)))
    assert reply.shares is not None
    first, second = sorted(letters, key=lambda letter: -(reply.shares or {})[letter])[:2]
    return None if reply.shares[first] == reply.shares[second] else first


def grade_of(reply: Reply) -> float | None:
    """A grade from 1 to 10: Σ g · P(g), or the number that was written; None where the reply has none."""
    if reply.shares is not None:
        return sum(float(grade) * share for grade, share in reply.shares.items())
    said = _said(_OF_TEN.sub("", reply.text or ""), _GRADES)
    if said is None or not LOWEST_GRADE <= float(said) <= HIGHEST_GRADE:
        return None
    return float(said)


def without_thoughts(text: str) -> str:
    """What a model wrote behind its thoughts; nothing where it was cut off while it thought.

    Some chat templates write ``<think>`` themselves, so that only the end of the thoughts stands in the text.
    """
    return _THOUGHTS.sub("", text).strip()


def _said(text: str, pattern: re.Pattern[str]) -> str | None:
    """What a text says: the last thing in double brackets, else what its first and its last line say, if they do not differ."""
    for inside in reversed(_BRACKETS.findall(text)):
        if (said := _said_by(inside, pattern)) is not None:
            return said
    lines = [line for line in text.splitlines() if line.strip()]
    found = {said for line in (*lines[:1], *lines[-1:]) if (said := _said_by(line, pattern)) is not None}
    return found.pop() if len(found) == 1 else None


def _said_by(line: str, pattern: re.Pattern[str]) -> str | None:
    """The last word of a line where it fits the pattern, and nothing but `_AROUND` stands before it."""
    *before, last = _WORDS.findall(line) or [""]
    if not pattern.fullmatch(last) or any(word.lower() not in _AROUND for word in before):
        return None
    return last
