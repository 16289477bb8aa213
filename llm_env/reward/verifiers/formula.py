r"""The verifier ``math``: the response's answer equals the formula that a column has, by computer algebra (`math-verify`)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from llm_env.extras import require
from llm_env.reward.limits import OutOfTimeError, call_within, can_interrupt
from llm_env.reward.verifiers.answers import check_place, find_answer
from llm_env.reward.verifiers.base import Verifier

SECONDS = 5.0
"""How long one comparison may take; one that takes longer shows nothing."""
_MOST_CHARACTERS = 500
_LARGEST_EXPONENT = 1000
"""Larger powers and factorials are not computed: 9^{9^9} would fill the memory, and nothing could stop it."""


@dataclass(frozen=True)
class MathVerifier(Verifier):
    r"""1 where the response's answer equals the column's, as sympy sees it, else 0: ``\frac{1}{2}`` is ``0.5``.

    Answers are read as LaTeX and in no other way: sympy's own reader of formulas would execute Python. Needs `math-verify`.

    Attributes:
        column: Has the right answer in LaTeX; of a solution with ``\boxed{…}`` or ``####`` it is what is marked so.
        extract: Where the answer is looked for, as in `llm_env.reward.verifiers.answers.find_answer`. With ``auto``, a response
            that marks no answer gives its last line.
    """

    column: str = "answer"
    extract: str = "auto"

    def __post_init__(self) -> None:
        """Checks the options, and that the package is there."""
        check_place(self.extract)
        require("math_verify", "verify")

    @property
    def columns(self) -> tuple[str, ...]:
        """See `Verifier.columns`."""
        return (self.column,)

    def check(self, record: Mapping[str, Any]) -> None:
        """See `Verifier.check`."""
        # The text of a list or of nothing would be read as a product of letters.
        is_written = type(record[self.column]) in (str, int, float)
        if not is_written or _limited(lambda: _formulas(self._right(record))) in (None, ()):
            raise ValueError(f"{self.column}={record[self.column]!r:.80} is no formula in LaTeX")

    def score(self, response: str, record: Mapping[str, Any]) -> float:
        """See `Verifier.score`."""
        answer = find_answer(response, self.extract)
        if answer is None and self.extract == "auto":
            answer = find_answer(response, "last_line")
        if answer is None:
            return 0.0
        return float(bool(_limited(lambda: _equal(self._right(record), answer))))

    def _right(self, record: Mapping[str, Any]) -> str:
        text = str(record[self.column])
        return find_answer(text) or text.strip()


def _limited(call: Any) -> Any:
    """What a function returns; None where it takes longer than `SECONDS`, or fails in one of sympy's many ways."""
    try:
        return call_within(SECONDS, call) if can_interrupt() else call()
    except OutOfTimeError:
        return None
    except Exception:
        return None


def _equal(right: str, answer: str) -> bool:
    """Whether two formulas are equal."""
    if right == answer:
        return True
    one, other = _formulas(right), _formulas(answer)
    if not one or not other or not all(map(_is_small, (*one, *other))):
        return False
    return bool(_package().verify(list(one), list(other), timeout_seconds=None, raise_on_error=True))


@lru_cache(maxsize=4096)
def _formulas(text: str) -> tuple[Any, ...]:
    """What a text says in LaTeX, as sympy's expressions, not evaluated; none where that is nothing."""
    if len(text) > _MOST_CHARACTERS:
        return ()
    package = _package()
    text = text.strip().strip("$").replace(r"\(", "").replace(r"\)", "")
    latex = [package.LatexExtractionConfig()]
    return tuple(package.parse(f"${text}$", latex, fallback_mode="no_fallback", parsing_timeout=None))


def _is_small(formula: Any) -> bool:
    """Whether a formula has no power, factorial, sum or product that could not be computed in time."""
    sympy = require("sympy", "verify")
    for node in sympy.preorder_traversal(formula):
        if isinstance(node, sympy.Sum | sympy.Product):
            return False
        if isinstance(node, sympy.Pow):
            size = node.exp
        elif isinstance(node, sympy.factorial):
            size = node.args[0]
        else:
            continue
        if size.has(sympy.Pow, sympy.factorial) and size.is_number and not size.free_symbols and not _is_root(size):
            return False
        if size.is_Number and abs(size) > _LARGEST_EXPONENT:
            return False
    return True


def _is_root(exponent: Any) -> bool:
    """Whether an exponent's own powers are those of a fraction, as the 1/2 of a square root."""
    sympy = require("sympy", "verify")
    return all(p.base.is_Integer and p.exp == -1 for p in exponent.atoms(sympy.Pow)) and not exponent.has(
        sympy.factorial
    )


def _package() -> Any:
    package = require("math_verify", "verify")
    # It warns once that its own time limit is off, which is an alarm that would take the place of `call_within`'s.
    for name in ("parser", "grader", "utils"):
        logging.getLogger(f"math_verify.{name}").setLevel(logging.CRITICAL)
    return package
