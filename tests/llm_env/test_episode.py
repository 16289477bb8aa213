from __future__ import annotations

from llm_env.episode import Episode
from llm_env.text.prompts import Prompt

PROMPT = Prompt("hi", (1, 5, 6))


def test_append_ends_at_an_end_token() -> None:
    episode = Episode(PROMPT)
    assert not episode.append(7, frozenset({2, 3}), 5)
    assert episode.append(3, frozenset({2, 3}), 5)
    assert episode.done
    assert episode.has_end
    assert episode.ids == [1, 5, 6, 7, 3]
    assert episode.length == 5


def test_append_ends_at_the_cap_without_an_end() -> None:
    episode = Episode(PROMPT)
    assert [episode.append(9, frozenset({2}), 3) for _ in range(3)] == [False, False, True]
    assert episode.done
    assert not episode.has_end
