"""One episode of the token MDP: a prompt, the response that grows on it, and what the models say about it. No models."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from llm_env.text.prompts import Prompt


@dataclass(eq=False)  # compared by identity: two episodes with the same tokens are two episodes
class Episode:
    """One prompt and the response that grows on it.

    What the policy and the frozen models say about the response is filled in when it becomes known: step by step, or
    for a whole batch of episodes after they ended (deferred scoring).

    Attributes:
        prompt: The prompt that the response continues.
        response_ids: Response tokens so far, end token included.
        log_probs: log π of each response token, in nats. Empty where the policy does not report it.
        ref_log_probs: log π_ref of each response token that is scored so far, in nats; at most as long as `response_ids`.
        exact_kl: KL(π‖π_ref) of the whole next-token distributions before each scored token, in nats. Empty unless the
            reward charges the exact KL.
        done: Whether the response has ended.
        has_end: Whether the response ended with an end token, not at the length cap.
        response_text: The response's text without special tokens; set when it has ended.
        rm_score: The reward model's score R(x, y), before shift, scale and penalties; None until it is scored.
        part_scores: The score of each reward model by its short name, unweighted, where several are summed.
        final_score: What the last token is paid: `rm_score` shifted, scaled, clipped, less all penalties.
        info: The info dictionary that the environment returned with the last step; deferred scoring completes it.
    """

    prompt: Prompt
    response_ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    ref_log_probs: list[float] = field(default_factory=list)
    exact_kl: list[float] = field(default_factory=list)
    done: bool = False
    has_end: bool = False
    response_text: str = ""
    rm_score: float | None = None
    part_scores: dict[str, float] = field(default_factory=dict)
    final_score: float | None = None
    info: dict[str, Any] | None = None

    @property
    def length(self) -> int:
        """Number of tokens of prompt and response, end token included."""
        return len(self.prompt.ids) + len(self.response_ids)

    @property
    def ids(self) -> list[int]:
        """Token ids of prompt and response, end token included."""
        return [*self.prompt.ids, *self.response_ids]

    @property
    def log_prob(self) -> float:
        """Log π of the response, in nats: the sum over its tokens. NaN where it is not known of every token."""
        return self._total(self.log_probs)

    @property
    def ref_log_prob(self) -> float:
        """Log π_ref of the response, in nats: the sum over its tokens. NaN where it is not known of every token."""
        return self._total(self.ref_log_probs)

    @property
    def kl(self) -> float:
        """Log π - log π_ref of the response, in nats: on samples of π, an estimate of KL(π‖π_ref) of whole responses.

        NaN where either is not known of every token.
        """
        return self.log_prob - self.ref_log_prob

    def _total(self, values: list[float]) -> float:
        # A partial sum would look like a likelier response, so it is NaN.
        return float(sum(values)) if len(values) == len(self.response_ids) else math.nan

    def append(self, token: int, eos_ids: frozenset[int], max_new_tokens: int) -> bool:
        """Adds one token to the response.

        Args:
            token: The token.
            eos_ids: Tokens that end a response.
            max_new_tokens: Length cap of a response.

        Returns:
            Whether the response has ended with it.
        """
        self.response_ids.append(token)
        self.has_end = token in eos_ids  # also where it is the last token that fits
        self.done = self.has_end or len(self.response_ids) >= max_new_tokens
        return self.done
