"""Records from files and datasets, each with its place (file and line), so that errors can name it."""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from pathlib import Path
from typing import Any

from llm_env.extras import require
from llm_env.hub import why_not
from llm_env.text.reasoning_gym import PREFIX, read_task

FILE_KINDS = (".txt", ".jsonl", ".json", ".csv", ".parquet")


def read_records(source: str | Path, option: str) -> list[tuple[str, Any]]:
    """Reads all records of a file, or of a dataset id with an optional split (``"stanfordnlp/imdb:train"``).

    Args:
        source: ``.txt`` (each line a record), ``.jsonl`` (any JSON value a line), ``.json`` (one array), ``.csv``,
            ``.parquet``, a dataset, or a task of reasoning-gym (`llm_env.text.reasoning_gym`).
        option: The option that the source came from, for error messages.

    Returns:
        Pairs of a place, as ``file, line 3``, and the record: a text, or a dictionary of fields.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file's ending is none of `FILE_KINDS`, or a record cannot be read (the error names its line).
    """
    name = str(source)
    if name.startswith(PREFIX):
        return read_task(name, option)
    path = Path(name).expanduser()
    if path.suffix.lower() in FILE_KINDS or path.exists():
        return _read_file(path, option)
    if name.startswith(("/", "./", "../", "~")):
        raise FileNotFoundError(f"{option}={name!r}: there is no such file.")
    return _read_dataset(name, option)


def _read_file(path: Path, option: str) -> list[tuple[str, Any]]:
    label = f"{option}={str(path)!r}"
    if path.is_dir():
        raise ValueError(f"{label} is a folder; give a file in it.")
    if not path.is_file():
        raise FileNotFoundError(f"{label}: there is no such file.")
    kind = path.suffix.lower()
    if kind not in FILE_KINDS:
        raise ValueError(f"{label}: the file's ending must be one of {', '.join(FILE_KINDS)}.")
    if kind == ".parquet":
        return _parquet(path, label)
    text = file_text(path, label)
    if kind == ".csv":
        return _csv(path, text)
    if kind == ".json":
        return _json_array(path, text)
    if kind == ".txt":
        # Not `splitlines`, which also parts a text at characters that are none of a line's end, such as U+2028.
        lines = re.split(r"\r\n|\n|\r", text.removesuffix("\n").removesuffix("\r")) if text else []
        return [(f"{path}, line {i}", line) for i, line in enumerate(lines, 1)]
    return [(f"{path}, line {i}", _json(f"{path}, line {i}", line)) for i, line in enumerate(jsonl_lines(text), 1)]


def jsonl_lines(text: str) -> list[str]:
    """The lines of JSONL: they end at line feeds, and at nothing else that Unicode calls the end of a line."""
    return text.removesuffix("\n").split("\n") if text else []


def file_text(path: Path, label: str) -> str:
    """The text of a UTF-8 file, with or without a byte order mark.

    Args:
        path: A text file: .txt, .jsonl, .csv or JSON.
        label: The option and the file's name, for error messages.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not UTF-8 text; the line is named.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise OSError(f"{label} cannot be read: {error.strerror}.") from error
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError(f"{label} is UTF-16 text. Save it as UTF-8.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{path}, line {line}: not UTF-8 text (byte {error.start}). Save the file as UTF-8."
        ) from error
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise ValueError(f"{path}, line {line}: a NUL character, so this is no text in UTF-8. Save the file as UTF-8.")
    return text


def _csv(path: Path, text: str) -> list[tuple[str, Any]]:
    records = []
    limit = csv.field_size_limit(max(len(text), 1))  # the usual 131,072 characters are less than some texts have
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            if None in row:
                raise ValueError(
                    f"{path}, line {reader.line_num}: more fields than the first line names ({len(reader.fieldnames or ())}). "
                    "Put double quotes around texts with commas."
                )
            records.append((f"{path}, line {reader.line_num}", {k: v or "" for k, v in row.items()}))
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.reader.line_num}: not valid CSV ({error}).") from error
    finally:
        csv.field_size_limit(limit)
    return records


def _parquet(path: Path, label: str) -> list[tuple[str, Any]]:
    read_table = require("pyarrow.parquet", "data").read_table
    try:
        table = read_table(path)
        names = (table.schema.pandas_metadata or {}).get("index_columns", [])  # of rows' labels, which pandas adds
        rows = table.drop_columns([name for name in names if isinstance(name, str)]).to_pylist()
    except Exception as error:  # pyarrow raises many kinds
        raise ValueError(f"{label} cannot be read as parquet: {_first_line(error)}.") from error
    return [(f"{path}: row {i}", row) for i, row in enumerate(rows, 1)]


def _json_array(path: Path, text: str) -> list[tuple[str, Any]]:
    values = parsed_json(text, str(path))
    if not isinstance(values, list):
        raise ValueError(f"{path}: a .json file holds one array of records; one record a line is .jsonl.")
    return [(f"{path}, entry {i}", value) for i, value in enumerate(values, 1)]


def _json(where: str, line: str) -> Any:
    if not line.strip():
        raise ValueError(f"{where}: the line is empty. Remove it.")
    return parsed_json(line, where)


def parsed_json(text: str, where: str) -> Any:
    """The value that a JSON text stands for.

    Args:
        text: The text.
        where: Where it comes from, as ``file, line 3``, for error messages.

    Raises:
        ValueError: it is not JSON, nested too deeply, or has numbers or characters that no file can hold; with `where`.
    """
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
        if "\\ud" in text.lower():  # half of a character that UTF-16 writes as two
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except json.JSONDecodeError as error:
        place = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno}, column {error.colno}"
        raise ValueError(f"{where}: not valid JSON ({error.msg} at {place}).") from error
    except RecursionError as error:
        raise ValueError(f"{where}: JSON that is nested too deeply.") from error
    except UnicodeEncodeError as error:
        raise ValueError(f"{where}: a lone surrogate (such as \\ud800), which is no character. Remove it.") from error
    except ValueError as error:  # a number of thousands of digits, or none
        raise ValueError(f"{where}: not valid JSON ({_first_line(error)}).") from error
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number in JSON")


def _first_line(error: Exception) -> str:
    """The first line of an error's text without its full stop, or the error's kind where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def _read_dataset(name: str, option: str) -> list[tuple[str, Any]]:
    load_dataset = require("datasets", "data").load_dataset
    path, _, split = name.partition(":")
    if not Path(path).is_dir() and (reason := why_not(path, "dataset")) is not None:
        kinds = ", ".join(FILE_KINDS)
        raise ValueError(f"{option}={name!r}: neither a file ({kinds}) nor a dataset that could be loaded ({reason}).")
    try:
        data = load_dataset(path, split=split or "train")
    except Exception as error:  # datasets and the hub raise many kinds
        raise ValueError(
            f"{option}={name!r}: neither a file ({', '.join(FILE_KINDS)}) nor a dataset that could be loaded "
            f"({_first_line(error)})."
        ) from error
    return [(f"{name}, row {i}", dict(record)) for i, record in enumerate(data, 1)]
