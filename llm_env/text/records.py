"""Records from files and datasets, each with its place (file and line), so that errors can name it."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

from llm_env.extras import require

FILE_KINDS = (".txt", ".jsonl", ".csv", ".parquet")


def read_records(source: str | Path, option: str) -> list[tuple[str, Any]]:
    """Reads all records of a file, or of a dataset id with an optional split (``"stanfordnlp/imdb:train"``).

    Args:
        source: ``.txt`` (each line a record), ``.jsonl`` (any JSON value a line), ``.csv``, ``.parquet`` or a dataset.
        option: The option that the source came from, for error messages.

    Returns:
        Pairs of a place, as ``file, line 3``, and the record: a text, or a dictionary of fields.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file's ending is none of `FILE_KINDS`, or a record cannot be read (the error names its line).
    """
    name = str(source)
    path = Path(name).expanduser()
    if path.suffix.lower() in FILE_KINDS or path.exists():
        return _read_file(path, option)
    if name.startswith(("/", "./", "../", "~")):
        raise FileNotFoundError(f"{option}={name!r}: there is no such file.")
    return _read_dataset(name, option)


def _read_file(path: Path, option: str) -> list[tuple[str, Any]]:
    if not path.is_file():
        raise FileNotFoundError(f"{option}={str(path)!r}: there is no such file.")
    kind = path.suffix.lower()
    if kind not in FILE_KINDS:
        raise ValueError(f"{option}={str(path)!r}: the file's ending must be one of {', '.join(FILE_KINDS)}.")
    if kind == ".parquet":
        require("pyarrow", "data")
        rows = require("pandas", "data").read_parquet(path).to_dict("records")
        return [(f"{path}: row {i}", {str(k): v for k, v in row.items()}) for i, row in enumerate(rows, 1)]
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{option}={str(path)!r}: not UTF-8 text at byte {error.start}.") from error
    if kind == ".csv":
        reader = csv.DictReader(io.StringIO(text, newline=""))
        return [(f"{path}, line {reader.line_num}", {k: v or "" for k, v in row.items()}) for row in reader]
    # Not `splitlines`, which also parts a text at characters that JSON leaves as they are, such as U+2028.
    parts = re.split(r"\r\n|\n|\r", text.removesuffix("\n").removesuffix("\r")) if text else []
    lines = [(f"{path}, line {i}", line) for i, line in enumerate(parts, 1)]
    return lines if kind == ".txt" else [(where, _json(where, line)) for where, line in lines]


def _json(where: str, line: str) -> Any:
    if not line.strip():
        raise ValueError(f"{where}: the line is empty. Remove it.")
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not valid JSON ({error.msg} at column {error.colno}).") from error


def _read_dataset(name: str, option: str) -> list[tuple[str, Any]]:
    load_dataset = require("datasets", "data").load_dataset
    path, _, split = name.partition(":")
    try:
        data = load_dataset(path, split=split or "train")
    except Exception as error:  # datasets and the hub raise many kinds
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{option}={name!r}: neither a file ({', '.join(FILE_KINDS)}) nor a dataset that could be loaded ({first_line})."
        ) from error
    return [(f"{name}, row {i}", dict(record)) for i, record in enumerate(data, 1)]
