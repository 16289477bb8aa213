"""What an algorithm was made from, as plain values that stand in its saved zip, so that nothing there has to be unpickled."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule

RECORD = "made_with"
"""The algorithm's attribute that has the record; SB3's `save` writes it as JSON, as it does with all that JSON can say."""
_SCHEDULE = "schedule"
_LINEAR = re.compile(r"LinearSchedule\(start=([^,)]+), end=([^,)]+), end_fraction=([^,)]+)\)")
_CONSTANT = re.compile(r"ConstantSchedule\(val=([^,)]+)\)")


def record_of(**arguments: Any) -> dict[str, Any]:
    """Makes the record of `make_algorithm`'s arguments.

    Returns:
        Plain values, with schedules as lists of their numbers; under ``left_out`` the names of what JSON cannot say, such as a
        reward function.
    """
    left_out: list[str] = []

    def plain(value: Any, name: str) -> Any:
        if isinstance(value, Mapping):
            entries = {str(k): plain(v, str(k)) for k, v in value.items()}
            return {k: v for k, v in entries.items() if k not in left_out}
        if isinstance(value, ConstantSchedule | LinearSchedule | FloatSchedule):
            return {_SCHEDULE: repr(value)}
        try:
            return json.loads(json.dumps(value, allow_nan=False))
        except (TypeError, ValueError):
            left_out.append(name)
            return None

    record = {k: plain(v, k) for k, v in arguments.items()}
    return {**{k: v for k, v in record.items() if k not in left_out}, "left_out": left_out}


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
