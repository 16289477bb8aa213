"""Best of n: no training; sample n responses and keep the one that the reward model likes best."""

from __future__ import annotations

import math
from collections.abc import Sequence

from llm_env.episode import Episode
from llm_env.lm.causal_lm import CausalLM
from llm_env.rollout import respond
from llm_env.task import TextTask
from llm_env.text.prompts import Prompt


def best_of_n_kl(n: int) -> float:
    """Log n - (n-1)/n, in nats: how far best-of-n is from what it samples from, at most.

    Stiennon et al. 2020 (https://arxiv.org/abs/2009.01325), appendix G.3; an upper bound, Beirami et al. 2024
    (https://arxiv.org/abs/2401.01879).

    Raises:
        ValueError: n is below 1.
    """
    if n < 1:
        raise ValueError(f"n={n} must be at least 1.")
    return math.log(n) - (n - 1) / n


def best_of_n(lm: CausalLM, task: TextTask, prompts: Sequence[Prompt], n: int, seed: int) -> list[Episode]:
    """The best of n scored responses to each prompt, by `final_score`.

    Args:
        lm: What to sample from, in eval mode.
        task: Gives sizes, reference and reward model.
        prompts: What to respond to.
        n: Responses to each.
        seed: Of the sampling.

    Raises:
        ValueError: n is below 1.
    """
    best_of_n_kl(n)
    best: list[Episode] = []
    for attempt in range(n):
        episodes = respond(lm, task, prompts, seed + 1_000_003 * attempt)
        best = (
            episodes if not best else [a if _score(a) >= _score(b) else b for a, b in zip(best, episodes, strict=True)]
        )
    return best


def _score(episode: Episode) -> float:
    assert episode.final_score is not None
    return episode.final_score
