"""Best of n: without training, sample n responses to each prompt and keep the one with the highest score."""

from __future__ import annotations

import math
from collections.abc import Sequence

from llm_env.episode import Episode
from llm_env.lm.causal_lm import CausalLM
from llm_env.rollout import respond
from llm_env.task import TextTask
from llm_env.text.prompts import Prompt


def best_of_n_kl(n: int) -> float:
    """The largest KL from best of n to the model that it samples from, in nats: log n - (n-1)/n.

    Stiennon et al. 2020 (https://arxiv.org/abs/2009.01325), appendix G.3; it is an upper bound, Beirami et al. 2024
    (https://arxiv.org/abs/2401.01879).

    Args:
        n: Responses to each prompt.

    Raises:
        ValueError: n is below 1.
    """
    if n < 1:
        raise ValueError(f"n={n} must be at least 1.")
    return math.log(n) - (n - 1) / n


def best_of_n(lm: CausalLM, task: TextTask, prompts: Sequence[Prompt | None], n: int, seed: int) -> list[Episode]:
    """Samples n responses to each prompt, and keeps the one with the highest score, penalties included.

    Args:
        lm: The model to sample from, in eval mode.
        task: Gives sizes, temperature, reference and reward model.
        prompts: The prompts to respond to.
        n: Responses to each prompt.
        seed: Seed of the sampling.

    Returns:
        One scored episode for each prompt, in the prompts' order.

    Raises:
        ValueError: n is below 1.
    """
    best_of_n_kl(n)  # checks n
    best: list[Episode] = []
    for attempt in range(n):
        # Far apart, so that seed 0's second attempt is no other seed's first.
        episodes = respond(lm, task, prompts, seed + 1_000_003 * attempt)
        if not best:
            best = episodes
        else:  # of equal scores the earlier response stays
            best = [old if _score(old) >= _score(new) else new for old, new in zip(best, episodes, strict=True)]
    return best


def _score(episode: Episode) -> float:
    assert episode.final_score is not None
    return episode.final_score
