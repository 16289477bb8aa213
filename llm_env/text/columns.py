"""Columns: what a prompt's record holds besides the prompt, as the answer to a question; rewards take what they name."""

from __future__ import annotations

import datetime
import decimal
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def plain_columns(record: Mapping[Any, Any], without: str) -> dict[str, Any]:
    """The fields of a record as plain JSON values, so that files, checkpoints and requests can hold them.

    Arrays and tuples become lists, dates and decimal numbers texts, NaN None. A field that holds anything else, as an image,
    is left out.

    Args:
        record: The record's fields by name.
        without: The field that is the prompt, which is no column.
    """
    columns = {}
    for name, value in record.items():
        if isinstance(name, str) and name != without:
            try:
                columns[name] = _plain(value)
            except TypeError:
                continue
    return columns


def shared_names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The columns that every row has, in the first row's order; none where there are no rows."""
    return [name for name in rows[0] if all(name in row for row in rows)] if rows else []


def _plain(value: Any) -> Any:
    """A value as JSON has it.

    Raises:
        TypeError: there is no such value.
    """
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        if math.isinf(value):
            raise TypeError("infinity is no number in JSON")
        return None if math.isnan(value) else value  # what pandas has in the place of a value that is missing
    if isinstance(value, datetime.date | datetime.time):  # a datetime is a date
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return str(value)
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    raise TypeError(f"{type(value).__name__} is none of JSON's types")
