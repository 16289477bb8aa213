"""Prompts from reasoning-gym's tasks, which make as many as are wanted: ``reasoning_gym:basic_arithmetic?size=1000&seed=1``.

https://github.com/open-thought/reasoning-gym. The package is no part of an extra, because it pins versions that others exclude:
``pip install reasoning-gym``.
"""

from __future__ import annotations

import importlib
import json
from functools import lru_cache
from typing import Any

from llm_env.options import parse_options

PREFIX = "reasoning_gym:"
COLUMN = "reasoning_gym"
"""The column that says which task, settings and entry a prompt is from."""


def read_task(name: str, option: str) -> list[tuple[str, Any]]:
    """Reads all entries of a task as records with ``prompt``, ``answer`` and `COLUMN`.

    Args:
        name: ``reasoning_gym:TASK?name=value&…``; the options are the task's settings, ``size`` and ``seed`` among them.
        option: The option that it came from, for error messages.

    Raises:
        ImportError: reasoning-gym is not installed.
        ValueError: there is no such task or setting.
    """
    task, values = parse_options(name.removeprefix(PREFIX), f"{option}={name!r}")
    settings = {key: _value(value) for key, value in values.items()}
    try:
        dataset = dataset_of(task, settings)
    except ValueError as error:
        raise ValueError(f"{option}={name!r}: {error}.") from error
    return [
        (
            f"{name}, entry {i}",
            {
                "prompt": entry["question"],
                "answer": entry["answer"],
                COLUMN: {"task": task, "settings": settings, "index": i},
            },
        )
        for i, entry in ((i, dataset[i]) for i in range(len(dataset)))
    ]


def dataset_of(task: str, settings: dict[str, Any]) -> Any:
    """The task's data set, which makes its entries anew from the seed.

    Raises:
        ImportError: reasoning-gym is not installed.
        ValueError: there is no such task or setting.
    """
    return _dataset(task, json.dumps(settings, sort_keys=True))


@lru_cache(maxsize=64)
def _dataset(task: str, settings: str) -> Any:
    try:
        package = importlib.import_module("reasoning_gym")
    except ModuleNotFoundError as error:
        raise ImportError(
            f"reasoning-gym is needed for the task {task!r} and is not installed: pip install reasoning-gym"
        ) from error
    try:
        # Without a seed of its own a task would draw another one in each process.
        return package.create_dataset(task, **{"seed": 0, **json.loads(settings)})
    except (ValueError, TypeError, AssertionError) as error:
        raise ValueError(f"reasoning-gym has no such task or setting ({error})") from error


def _value(text: str) -> Any:
    """A setting as JSON says it, or as the text that it is."""
    try:
        return json.loads(text)
    except ValueError:
        return text
