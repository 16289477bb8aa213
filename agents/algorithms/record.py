"""What an algorithm was made from, as plain values that stand in its saved zip, so that nothing there has to be unpickled."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule

from llm_env.text.prompts import PromptRecord

RECORD = "made_with"
"""The algorithm's attribute that has the record; SB3's `save` writes it as JSON, as it does with all that JSON can say."""
_SCHEDULE = "schedule"
_LINEAR = re.compile(r"LinearSchedule\(start=([^,)]+), end=([^,)]+), end_fraction=([^,)]+)\)")
_CONSTANT = re.compile(r"ConstantSchedule\(val=([^,)]+)\)")


def record_of(**arguments: Any) -> dict[str, Any]:
    """Makes the record of `make_algorithm`'s arguments.

    Returns:
        Plain values, with schedules as what they say of themselves; under ``left_out`` the names of what JSON cannot say, such
        as ``env_kwargs.reward_model`` where that is a function.
    """
    left_out: list[str] = []
    record = _plain(arguments, "", left_out)
    return {**record, "left_out": left_out}


def _plain(values: Mapping[str, Any], inside: str, left_out: list[str]) -> dict[str, Any]:
    """A mapping's values as JSON has them; the names of others, with those of the mappings around them, go to `left_out`."""
    plain: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{inside}{key}"
        if isinstance(value, Mapping):
            plain[str(key)] = _plain(value, f"{name}.", left_out)
        elif (
            isinstance(value, ConstantSchedule | LinearSchedule | FloatSchedule)
            and schedule_from(repr(value)) is not None
        ):
            plain[str(key)] = {_SCHEDULE: repr(value)}
        else:
            try:
                plain[str(key)] = json.loads(json.dumps(value, allow_nan=False, default=_path_or_number))
            except (TypeError, ValueError):
                left_out.append(name)
    return plain


def _path_or_number(value: Any) -> Any:
    """What JSON writes for a path, a prompt's record, and numpy's numbers."""
    if isinstance(value, PromptRecord):
        return value.to_json()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError


def schedules_made(value: Any) -> Any:
    """The values of a record with its schedules made again."""
    if isinstance(value, dict):
        if value.keys() == {_SCHEDULE}:
            return schedule_from(str(value[_SCHEDULE]))
        return {k: schedules_made(v) for k, v in value.items()}
    return value


def schedule_from(text: str) -> float | LinearSchedule | None:
    """Reads what a constant or linear schedule of SB3 says of itself; None where the text is of another one.

    Args:
        text: Its `repr`. SB3 wraps schedules in others, which repeat it.
    """
    try:
        if (linear := _LINEAR.search(text)) is not None:
            return LinearSchedule(*map(float, linear.groups()))
        if (constant := _CONSTANT.search(text)) is not None:
            return float(constant[1])
    except ValueError:  # no numbers
        return None
    return None
