"""The verifier ``json``: the response is JSON, and keeps a schema where one is given."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm_env.extras import require
from llm_env.reward.verifiers.base import Verifier
from llm_env.text.records import file_text, parsed_json

_FENCE = re.compile(r"```(?:json|JSON)?[ \t]*\n(.*?)```", re.DOTALL)


@dataclass(frozen=True)
class JSONVerifier(Verifier):
    """1 where the response is JSON that keeps the schema, else 0; a block between ``` stands for the response.

    References to other addresses are not followed.

    Attributes:
        schema: File with a JSON schema. Needs `jsonschema`, as `column` does.
        column: Column with a JSON schema for each prompt, as an object or as its text. With neither, any JSON will do.
    """

    schema: str = ""
    column: str = ""
    _of_file: Any = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Reads the schema, and checks it."""
        if self.schema and self.column:
            raise ValueError("schema and column both say what the schema is; give one of them.")
        if self.schema or self.column:
            require("jsonschema", "verify")
        if self.schema:
            path = Path(self.schema).expanduser()
            if not path.is_file():
                raise ValueError(f"schema={self.schema!r}: there is no such file.")
            schema = parsed_json(file_text(path, f"schema={self.schema!r}"), self.schema)
            object.__setattr__(self, "_of_file", _validator(schema, self.schema))

    @property
    def columns(self) -> tuple[str, ...]:
        """See `Verifier.columns`."""
        return (self.column,) if self.column else ()

    def check(self, record: Mapping[str, Any]) -> None:
        """See `Verifier.check`."""
        self._validator(record)

    def score(self, response: str, record: Mapping[str, Any]) -> float:
        """See `Verifier.score`."""
        blocks = _FENCE.findall(response)
        try:
            value = parsed_json(blocks[-1] if blocks else response, "response")
        except ValueError:
            return 0.0
        validator = self._validator(record)
        try:
            return float(validator is None or validator.is_valid(value))
        except (RecursionError, OverflowError):  # a reference to itself; a number beyond all floats
            return 0.0

    def _validator(self, record: Mapping[str, Any]) -> Any:
        """What knows the schema of a prompt; None where there is none."""
        if not self.column:
            return self._of_file
        schema = record[self.column]
        return _validator(parsed_json(schema, self.column) if isinstance(schema, str) else schema, self.column)


def _validator(schema: Any, name: str) -> Any:
    """What checks values by a schema.

    Raises:
        ValueError: that is no schema.
    """
    jsonschema, referencing = require("jsonschema", "verify"), require("referencing", "verify")
    if isinstance(schema, dict) and not isinstance(schema.get("$schema", ""), str):
        raise ValueError(f"{name} is no JSON schema: '$schema' is an address, not {json.dumps(schema['$schema'])[:80]}")
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    try:
        if not isinstance(schema, dict | bool):
            raise ValueError(f"{name} is no JSON schema: {json.dumps(schema)[:80]}")
        kind.check_schema(schema)
        if elsewhere := _references_elsewhere(schema, kind):
            raise ValueError(f"{name} refers to {elsewhere[0]!r:.80}, which is no part of it: nothing is fetched")
    except jsonschema.SchemaError as error:
        raise ValueError(f"{name} is no JSON schema: {error.message[:200]}") from error
    return kind(schema, registry=referencing.Registry())  # one that fetches nothing


def _references_elsewhere(schema: Any, kind: Any) -> list[str]:
    """The references of a schema to what is none of its own parts.

    Args:
        schema: An object, or True or False.
        kind: The class of validators for its version of JSON schema.
    """
    referencing = require("referencing", "verify")
    parts, references = [], []
    left = [schema]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            parts += [value["$id"]] if isinstance(value.get("$id"), str) else []
            references += [value[k] for k in ("$ref", "$dynamicRef") if isinstance(value.get(k), str)]
            left += value.values()
        elif isinstance(value, list):
            left += value
    specification = referencing.jsonschema.specification_with(kind.META_SCHEMA["$schema"])
    resolver = referencing.Registry().resolver_with_root(specification.create_resource(schema))
    is_one = not isinstance(schema, dict) or parts == [schema[k] for k in ("$id",) if k in schema]

    def leads_nowhere(reference: str) -> bool:
        if address := reference.partition("#")[0]:
            return not any(p.endswith(address) for p in parts)
        try:
            return is_one and resolver.lookup(reference) is None  # in parts of other names "#" begins anew
        except referencing.exceptions.Unresolvable:
            return True

    return [reference for reference in references if leads_nowhere(reference)]
