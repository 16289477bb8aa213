"""Amounts of memory as people write them; reading this module imports no torch."""

from __future__ import annotations

import re

UNITS = {
    "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
}  # fmt: skip


def read_amount(option: str, text: str) -> int:
    """Bytes of an amount as ``80GB`` or ``1.5 GiB``.

    Args:
        option: Where it stands, for the error.
        text: Digits, with or without a point, and KB, MB, GB, TB (thousands) or KiB, MiB, GiB, TiB (1,024s).

    Raises:
        ValueError: it is no amount above 0 with a unit.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]i?B)", text.strip(), re.IGNORECASE)
    if found is None or float(found[1]) == 0:
        raise ValueError(f"{option}={text!r} must be an amount above 0 with a unit, as 80GB or 24GiB.")
    return int(float(found[1]) * UNITS[found[2].upper()])


def shown(size: float) -> str:
    """Bytes as people read them: ``4.3 GiB``, or MiB below one."""
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:,.0f} MiB"
