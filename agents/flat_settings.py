"""Settings made of several dataclasses, read and written as one flat mapping of names to plain values.

A settings class groups its fields in nested dataclasses: `RunSettings` holds a `TaskOptions`, an `AlgorithmSettings` and so on.
A YAML file and the command line name each field without its group: ``kl_coef: 0.1``, ``--kl-coef 0.1``. The functions here
translate between the two, and check each value against the type that its field declares.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from agents.files import write_text

CONFIGS = Path(__file__).parent / "configs"
"""Folder of the YAML files that come with the package, for ``--config demo``."""

T = TypeVar("T")

_WORDS: dict[Any, str] = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    Path: "a path",
}


def flat_types(cls: type[Any]) -> dict[str, Any]:
    """Lists the settings of a dataclass and of the dataclasses nested in it.

    Args:
        cls: A dataclass. A field whose type is a dataclass is a group: its own fields take its place.

    Returns:
        Each setting's type by its name, groups in the order of their fields.

    Raises:
        TypeError: two groups have a setting of the same name, which a flat mapping could not tell apart.
    """
    flat: dict[str, Any] = {}
    for name, kind, is_group in _fields(cls):
        for key, value in (flat_types(kind) if is_group else {name: kind}).items():
            if key in flat:
                raise TypeError(f"{cls.__name__}: two of its groups have a setting named {key!r}.")
            flat[key] = value
    return flat


def to_flat(settings: Any) -> dict[str, Any]:
    """Turns a settings object into a mapping of names to plain values, tuples as lists."""
    flat: dict[str, Any] = {}
    for name, _, is_group in _fields(type(settings)):
        value = getattr(settings, name)
        if is_group:
            flat.update(to_flat(value))
        else:
            flat[name] = list(value) if isinstance(value, tuple) else value
    return flat


def to_words(settings: Any) -> list[str]:
    """The words that say a settings object on a command line: each value but those that are None or an empty list."""
    words: list[str] = []
    for name, value in to_flat(settings).items():
        if value is not None and value != []:
            words += option_words(name, value)
    return words


def option_words(name: str, value: Any) -> list[str]:
    """Gives the words that set an option on a command line.

    Args:
        name: The setting's name, with underscores.
        value: Its value. True and False become the flags ``--name`` and ``--no-name``, a list several words.
    """
    option = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{option}" if value else f"--no-{option}"]
    values = value if isinstance(value, list | tuple) else [value]
    return [f"--{option}", *map(str, values)]


def from_flat(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Makes a settings object from a flat mapping.

    Args:
        cls: The settings class: a dataclass, whose nested dataclasses are groups.
        values: Values by name. A setting that is left out keeps its default, and so does a text or flag that is null (`None`).
        where: The file or place that the values come from, for error messages.

    Raises:
        ValueError: a name is not a setting, or a value has another type than its field declares.
    """
    kinds = flat_types(cls)
    checked: dict[str, Any] = {}
    for name, value in values.items():
        # Each name is a setting of some group, and each value of its type; the groups are made of them in the end.
        if name not in kinds:
            near = difflib.get_close_matches(str(name), kinds, 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            if isinstance(value, dict) and "script" in value:
                hint = " It is a stage: this is a file for llm-env pipeline."
            raise ValueError(f"{where}: {name!r} is not a setting.{hint}")
        if value is None and not {type(None), int, float} & set(_alternatives(kinds[name])):
            continue  # files of earlier versions say null for a flag that is off
        checked[name] = _converted(value, kinds[name], f"{where}: {name}={value!r}")
    return _build(cls, checked)


def find_config(path: Path) -> Path:
    """The file that a name such as ``demo`` stands for, where it is one of those that come with the package; else the path."""
    shipped = CONFIGS / f"{path.name}.yaml"
    is_name = path == Path(path.stem) and not path.is_file()
    return shipped if is_name and shipped.is_file() else path


def read_yaml(path: Path, option: str = "config", stages: bool = False) -> Any:
    """Reads a YAML file of plain values.

    Args:
        path: The YAML file, or the name of one in `CONFIGS`; settings stand in it without their groups, one a line.
        option: The option that named the file, for error messages.
        stages: Whether it should hold a pipeline's stages, not settings; so that an error names the files of that kind.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not UTF-8, not valid YAML, has an object tag, or a name twice; the line is named.
    """
    path = find_config(path)
    if not path.is_file():
        of_kind = [f for f in CONFIGS.glob("*.yaml") if ("\n  script: " in f.read_text(encoding="utf-8")) == stages]
        names = ", ".join(sorted(file.stem for file in of_kind))
        raise FileNotFoundError(f"{option}={str(path)!r}: there is no such file. By name there is {names}.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text in UTF-8; save it as UTF-8.") from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, where: str) -> Any:
    """Reads YAML of plain values; no tag makes an object.

    Args:
        text: The YAML.
        where: The file or option that it comes from, for error messages.

    Raises:
        ValueError: it is not valid YAML, has an object tag, or a name twice; the line is named.
    """
    try:
        return yaml.load(text, _PlainLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error)
        line = f", line {mark.line + 1}" if mark is not None else ""
        raise ValueError(f"{where}{line}: not valid YAML of plain values ({problem}).") from error
    except (RecursionError, ValueError, OverflowError) as error:  # nested too deeply, or no date: 2026-13-45
        raise ValueError(f"{where}: not valid YAML of plain values ({error}).") from error


class _PlainLoader(yaml.SafeLoader):
    """PyYAML's safe loader, which makes plain values only; a name that stands twice in a mapping is refused."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """PyYAML's; of a repeated name it would keep the last value without a word."""
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:  # before << puts another mapping's names here
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} stands twice", key.start_mark)
                seen.add(key.value)
        return node


def read_settings(cls: type[T], path: Path) -> T:
    """Reads a settings object from a YAML file; a setting that the file leaves out keeps its default.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a mapping of settings to values; see `from_flat`.
    """
    values = read_yaml(path)
    if values is None:  # an empty file changes nothing
        values = {}
    if not isinstance(values, dict):
        raise ValueError(f"{path}: must be a mapping of settings to values.")
    return from_flat(cls, values, str(path))


def write_settings(settings: Any, path: Path) -> None:
    """Writes all settings as a flat YAML file that `read_settings` reads."""
    write_text(path, yaml.safe_dump(to_flat(settings), sort_keys=False))


def _fields(cls: type[Any]) -> Iterator[tuple[str, Any, bool]]:
    """Yields each field's name, its type, and whether the type is a dataclass, which is a group of settings."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        yield field.name, hints[field.name], dataclasses.is_dataclass(hints[field.name])


def _build(cls: type[T], values: Mapping[str, Any]) -> T:
    """Makes a settings object of checked values by name, its groups first."""
    arguments: dict[str, Any] = {}
    for name, kind, is_group in _fields(cls):
        if is_group:
            arguments[name] = _build(kind, values)
        elif name in values:
            arguments[name] = values[name]
    return cls(**arguments)


def _alternatives(kind: Any) -> tuple[Any, ...]:
    """The types of a union, or the one type."""
    return typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)


def _allows_none(kind: Any) -> bool:
    return type(None) in _alternatives(kind)


def _converted(value: Any, kind: Any, what: str) -> Any:
    """A YAML value as its field's type.

    Args:
        value: What YAML read.
        kind: The field's type: a plain type, a tuple or sequence of plain types, or a union of these and None.
        what: ``file: name=value``, for error messages.

    Raises:
        ValueError: the value is not of that type.
    """
    alternatives = [a for a in _alternatives(kind) if a is not type(None)]
    if value is None and _allows_none(kind):
        return None
    for alternative in alternatives:
        if typing.get_origin(alternative) in (tuple, Sequence):
            entries = value if isinstance(value, list | tuple) else (value,)  # one entry may stand without its list
            return tuple(_converted(entry, typing.get_args(alternative)[0], what) for entry in entries)
        if alternative is float and isinstance(value, int | float | str) and not isinstance(value, bool):
            try:
                return float(value)  # YAML reads 3e-4 as a text
            except ValueError:
                continue
        if alternative is Path and isinstance(value, str):
            return Path(value)
        # In Python True is a whole number too; as a setting it is not.
        if isinstance(value, alternative) and (alternative is bool or not isinstance(value, bool)):
            return value
    words = [_WORDS.get(a, "a list") for a in alternatives]
    hint = " Leave it out for its default." if value is None else ""
    raise ValueError(f"{what} must be {' or '.join(words)}.{hint}")
