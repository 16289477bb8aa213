"""Mistakes that someone could make, for `tests.mutations`."""

from __future__ import annotations

from typing import NamedTuple


class Mutation(NamedTuple):
    """One mistake.

    Attributes:
        name: What is wrong then.
        file: Where, relative to the repository.
        text: What stands there once.
        broken: What stands there instead.
        tests: Test files or node ids, of which one must fail.
    """

    name: str
    file: str
    text: str
    broken: str
    tests: tuple[str, ...]


LEARNING = "tests/test_learning.py::test_each_algorithm_learns_to_write_words"
MASK_TESTS = ("tests/llm_env/test_masks.py",)
