"""Options behind a name: ``name?option=value&option=value``, as in an address."""

from __future__ import annotations

from urllib.parse import unquote


def parse_options(text: str, label: str) -> tuple[str, dict[str, str]]:
    """Parts a name from its options. In values, ``%26`` stands for ``&`` and ``%25`` for ``%``; ``+`` stands for itself.

    Args:
        text: ``name`` or ``name?option=value&…``.
        label: What it is part of, for error messages.

    Raises:
        ValueError: a part is not option=value, or an option stands twice.
    """
    name, _, rest = text.partition("?")
    options: dict[str, str] = {}
    for part in rest.split("&") if rest else []:
        key, equals, value = part.partition("=")
        if not key or not equals:
            raise ValueError(f"{label}: {part!r} must be option=value.")
        if key in options:
            raise ValueError(f"{label}: the option {key!r} stands there twice.")
        options[key] = unquote(value)
    return name, options
