from __future__ import annotations

import math

import pytest

from llm_env.episode import Episode
from llm_env.text.ends import TurnEnds
from llm_env.text.prompts import Prompt

PROMPT = Prompt("hi", (1, 5, 6))
ENDS = TurnEnds({2, 3}, (), str)


def test_append_ends_at_an_end_token() -> None:
    episode = Episode(PROMPT)
    assert not episode.append(7, ENDS, 5)
    assert episode.append(3, ENDS, 5)
    assert episode.done
    assert episode.has_end
    assert episode.ids == [1, 5, 6, 7, 3]
    assert episode.length == 5


def test_append_ends_at_the_cap_without_an_end() -> None:
    episode = Episode(PROMPT)
    assert [episode.append(9, ENDS, 3) for _ in range(3)] == [False, False, True]
    assert episode.done
    assert not episode.has_end


def test_sums_over_the_response_in_nats() -> None:
    episode = Episode(PROMPT, response_ids=[7, 8], log_probs=[-1.0, -0.5], ref_log_probs=[-2.0, -0.25])
    assert (episode.log_prob, episode.ref_log_prob, episode.kl) == (-1.5, -2.25, 0.75)
    assert Episode(PROMPT).kl == 0.0


@pytest.mark.parametrize(("log_probs", "ref_log_probs"), [([], [-2.0, -0.25]), ([-1.0, -0.5], [-2.0])])
def test_a_sum_of_which_a_part_is_missing_is_nan(log_probs: list[float], ref_log_probs: list[float]) -> None:
    episode = Episode(PROMPT, response_ids=[7, 8], log_probs=log_probs, ref_log_probs=ref_log_probs)
    assert math.isnan(episode.kl)
    assert math.isnan(episode.log_prob) == (not log_probs)
    assert math.isnan(episode.ref_log_prob) == (len(ref_log_probs) < 2)
