"""Stars: absolute ratings of responses, 1 to 5, and the rankings that follow from them.

Responses with equally many stars tie. As rankings they train with any loss of rankings; the number of stars itself is what
``--loss ordinal`` and ``regression`` of a reward model learn (`agents.supervised.reward_model.stars`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from agents.preferences.fields import given_fields
from llm_env.rules import whole

MOST = 5
STAR_RULE = whole(1, MOST)


def checked_star(where: str, value: Any) -> int:
    """A number of stars; a text as CSV has it counts as the number.

    Args:
        where: Where it comes from, as ``file, line 3``, for the error.
        value: What should be a whole number from 1 to 5.

    Raises:
        ValueError: it is none.
    """
    star = int(value) if isinstance(value, str) and value.strip().isdecimal() else value
    if not STAR_RULE.allows(star):
        raise ValueError(f"{where}: stars={value!r:.80} must be {STAR_RULE}.")
    return int(star)


def checked_stars(where: str, value: Any, ids: Collection[str]) -> dict[str, int]:
    """The stars of some responses of a record, by response id.

    Args:
        where: Where it comes from, for the error.
        value: What should be an object of whole numbers from 1 to 5.
        ids: The responses' ids.

    Raises:
        ValueError: it is none, it is empty, or names a response that is not there.
    """
    value = given_fields(value) if isinstance(value, Mapping) else value
    if not isinstance(value, Mapping) or not value:
        raise ValueError(f"{where}: 'stars' must give numbers from 1 to {MOST} to response ids; got {value!r:.80}.")
    unknown = sorted(map(str, set(value) - set(ids)))
    if unknown:
        raise ValueError(
            f"{where}: 'stars' names {', '.join(unknown)}, but the responses are {', '.join(sorted(ids))}."
        )
    return {str(name): checked_star(f"{where}: {name}", star) for name, star in value.items()}


def tiers_by_stars(stars: Mapping[str, int]) -> tuple[tuple[str, ...], ...]:
    """Response ids from most stars to fewest, those with equally many together."""
    return tuple(
        tuple(name for name, star in stars.items() if star == level)
        for level in sorted(set(stars.values()), reverse=True)
    )
