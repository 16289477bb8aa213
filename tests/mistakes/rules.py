"""Mistakes in the rules of settings, and in where they are asked for."""

from __future__ import annotations

from tests.mistakes import Mutation

_TABLE = ("tests/test_bad_inputs.py",)
RULES = [
    Mutation(
        "NaN is a number",
        "llm_env/rules.py",
        "return math.isfinite(value)",
        "return True",
        _TABLE,
    ),
    Mutation(
        "True is a number",
        "llm_env/rules.py",
        "if isinstance(value, bool) or not isinstance(value, kinds)",
        "if not isinstance(value, kinds)",
        _TABLE,
    ),
    Mutation(
        "actions are cast",
        "llm_env/arguments.py",
        'if array.dtype.kind not in "iu":',
        "if False:",
        _TABLE,
    ),
    Mutation(
        "the trainings of rounds are checked when they begin",
        "agents/iteration/rounds.py",
        "    check_training(settings)\n",
        "",
        _TABLE,
    ),
]
