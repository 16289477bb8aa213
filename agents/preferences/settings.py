"""Settings of collecting preferences, which `collect_preferences` and the rounds of `agents.iteration` share."""

from __future__ import annotations

import math
from dataclasses import dataclass

from agents.runs.settings import check_at_least
from llm_env.reward.limits import CallLimits
from llm_env.settings import TaskSettings


@dataclass(frozen=True, kw_only=True)
class CollectionSettings:
    """What is responded to, how often, and how responses are ranked. Reading it imports no torch."""

    prompts: str | None = None
    """Prompts to respond to: a .txt, .jsonl, .csv or .parquet file, or a dataset id. Default: the embedded ones."""
    n_responses: int = 4
    """Responses to each prompt, at least 2; near-duplicates are drawn anew, and left out if that does not help."""
    max_prompt_length: int = TaskSettings.max_prompt_length
    """Tokens of a prompt; longer prompts are cut on the left."""
    max_new_tokens: int = TaskSettings.max_new_tokens
    """Length cap of a response, in tokens."""
    noise: float = 0.0
    """Temperature of the judges: 0 ranks by score; 1 makes Bradley-Terry annotators."""
    reward_timeout: float | None = TaskSettings.reward_timeout
    """Seconds that one call of a function or server that scores may take. Default: no limit for functions, 60 for servers."""
    reward_wait: float | None = TaskSettings.reward_wait
    """Seconds for which such a call that fails is repeated, with growing pauses. Default: 0 for functions, 600 for servers."""
    host: str = "127.0.0.1"
    """Address of the page on which people rank. 0.0.0.0 lets others in your network rank too."""
    port: int = 7860
    """Port of the page on which people rank."""

    @property
    def reward_limits(self) -> CallLimits:
        """How long a call of a function or server that scores may take, and for how long one that fails is repeated."""
        return CallLimits(self.reward_timeout, self.reward_wait)

    def check_collection(self) -> None:
        """Checks the numbers.

        Raises:
            ValueError: one breaks its rule.
        """
        check_at_least(self, 1, "max_prompt_length", "max_new_tokens")
        CallLimits(self.reward_timeout, self.reward_wait)
        check_n_responses(self.n_responses)
        check_noise(self.noise)


def check_n_responses(n_responses: int) -> None:
    """Refuses fewer than two responses to a prompt.

    Raises:
        ValueError: there are fewer.
    """
    if n_responses < 2:
        raise ValueError(f"n_responses={n_responses} must be at least 2: one response cannot be ranked.")


def check_noise(noise: float) -> None:
    """Refuses a temperature of a judge that is negative or not finite.

    Raises:
        ValueError: it is.
    """
    if not math.isfinite(noise) or noise < 0:
        raise ValueError(f"noise={noise} must be a finite number, at least 0.")
