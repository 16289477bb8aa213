"""How ``--help`` shows options: ``--model STR``, where tyro alone shows ``--model {None}|STR … (default: None)``."""

from __future__ import annotations

import dataclasses
import re
import sys
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

WORDS: dict[Any, str] = {str: "STR", int: "INT", float: "FLOAT", Path: "PATH", int | str: "INT|STR"}
"""What stands for a value of a type."""


def registry() -> ConstructorRegistry:
    """Rules for `tyro.cli` by which a dataclass's options are shown; what a command line means stays tyro's."""
    rules = ConstructorRegistry()
    asking_tyro = False

    @rules.struct_rule
    def shown_plainly(info: StructTypeInfo) -> StructConstructorSpec | None:
        nonlocal asking_tyro
        if asking_tyro or not dataclasses.is_dataclass(info.type):
            return None
        asking_tyro = True
        try:
            spec = ConstructorRegistry.get_struct_spec(info)  # tyro's own rule
        finally:
            asking_tyro = False
        if not isinstance(spec, StructConstructorSpec):
            return None
        return dataclasses.replace(spec, fields=tuple(map(plain, spec.fields)))

    return rules


def plain(field: StructFieldSpec) -> StructFieldSpec:
    """An option whose help is one paragraph, and which does not speak of None."""
    word = without_none(field.type)
    told = field.helptext
    hide_none = word is not None and field.default is None

    def text() -> str | None:
        said = told() if callable(told) else told
        return said and paragraph(said, hide_none)

    kind = field.type
    if word is not None:
        hint = "" if hide_none else None
        kind = Annotated[kind, tyro.conf.arg(metavar=word, help_behavior_hint=hint)]  # type: ignore[assignment]
    # Texts are read from the source, which only --help needs.
    return dataclasses.replace(field, type=kind, helptext=text if callable(told) else text())


def without_none(kind: Any) -> str | None:
    """What stands for a value of a type that allows None: ``STR``, ``INT|STR``, ``STR [STR ...]``; else None."""
    if typing.get_origin(kind) not in (typing.Union, types.UnionType) or type(None) not in typing.get_args(kind):
        return None
    words = []
    for one in typing.get_args(kind):
        if typing.get_origin(one) in (tuple, Sequence) and typing.get_args(one)[0] in WORDS:
            word = WORDS[typing.get_args(one)[0]]
            words.append(f"{word} [{word} ...]")
        elif one is not type(None):
            words.append(WORDS.get(one, getattr(one, "__name__", "VALUE").upper()))
    return "|".join(words)


def paragraph(text: str, hide_none: bool) -> str:
    """A field's explanation for the terminal: without the source's line breaks and marks of code.

    Args:
        text: As the docstring has it.
        hide_none: Whether the default is None, which a command line need not say: "None: no limit" is "Default: no limit".
    """
    text = re.sub(r"\s+", " ", text).strip().replace("`", "")
    return re.sub(r"\bNone: ", "Default: ", text) if hide_none else text


def as_called(description: str | None, names: dict[str, str]) -> str | None:
    """A command's explanation, in which commands are called as this one was: ``llm-env train``, or ``python scripts/train.py``.

    Args:
        description: The text above the options.
        names: The name of each command by its module in `agents.cli`.
    """
    if description is None:
        return None
    text = description.replace("``", "")
    if not sys.argv[0].startswith("llm-env"):
        return text
    return re.sub(
        r"python scripts/(\w+)\.py", lambda found: f"llm-env {names[found[1]]}" if found[1] in names else found[0], text
    )
