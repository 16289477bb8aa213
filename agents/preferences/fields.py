"""What a preference's record may have beside its texts, checked. Tables have nothing, or an empty text, for what it lacks."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from llm_env.rules import number

_MAY_BE_MISSING = ("id", "annotator", "aspect", "margin", "source")


def given_fields(record: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a record that have a value: a table names every column in every record."""
    return {k: v for k, v in record.items() if v is not None and (v != "" or k not in _MAY_BE_MISSING)}


def columns_of(where: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """The other fields of the prompt's record, as a line of a file keeps them."""
    columns = record.get("columns", {})
    if not isinstance(columns, dict):
        raise ValueError(f"{where}: 'columns' must be an object, the prompt's other fields; got {columns!r:.80}.")
    return columns


def aspect_of(where: str, record: Mapping[str, Any]) -> str | None:
    """In which respect the responses were compared; None: overall."""
    aspect = record.get("aspect")
    if aspect is not None and not isinstance(aspect, str):
        raise ValueError(f"{where}: aspect={aspect!r:.80} must be a text.")
    return aspect


def margin_of(where: str, record: Mapping[str, Any]) -> float | None:
    """A record's margin, a number or as CSV has it a text; None where it has none."""
    margin = record.get("margin")
    if margin is None:
        return None
    if isinstance(margin, str):
        with contextlib.suppress(ValueError):
            margin = float(margin)
    if not number(least=0).allows(margin):
        raise ValueError(f"{where}: margin={margin!r:.80} must be a finite number, at least 0.")
    return float(margin)


def scores_of(where: str, record: Mapping[str, Any], ids: set[str]) -> dict[str, float] | None:
    """The score of each response by its id; None where the record has none."""
    scores = record.get("scores")
    if scores is None:
        return None
    scores = given_fields(scores) if isinstance(scores, dict) else scores
    numbers = isinstance(scores, dict) and all(map(number().allows, scores.values()))
    if not numbers or not set(scores) <= ids:
        raise ValueError(f"{where}: 'scores' must give finite numbers to response ids; got {scores!r:.80}.")
    return {str(k): float(v) for k, v in scores.items()}
