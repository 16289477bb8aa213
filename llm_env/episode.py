"""The transition of the token MDP: append a token, and see whether that ends the response. No models."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llm_env.text.prompts import Prompt


@dataclass(eq=False)
class Episode:
    """One prompt and the response that grows on it.

    What the policy and the frozen models say about the response is filled in when it becomes known: step by step, or
    for a whole batch of episodes after they ended (deferred scoring).

    Attributes:
        prompt: What is being continued.
        response_ids: Tokens so far, end token included.
        log_probs: log π of each token, in nats, where the policy told it; as long as `response_ids` or empty.
        ref_log_probs: log π_ref of the first tokens, in nats; at most as long as `response_ids`.
        exact_kl: KL(π‖π_ref) of the whole distributions before the first tokens, in nats, where the reward charges that.
        done: Whether the response has ended.
        has_end: Whether it ended with an end token, not at the length cap.
        response_text: Its text without special tokens; set when it has ended.
        rm_score: R(x, y) before penalties; None until it is scored.
        final_score: What the last token is paid: `rm_score` less a penalty for a missing end.
        info: The info dictionary given out with the last step; deferred scoring completes it.
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
    final_score: float | None = None
    info: dict[str, Any] | None = None

    @property
    def length(self) -> int:
        """Tokens of prompt and response."""
        return len(self.prompt.ids) + len(self.response_ids)

    @property
    def ids(self) -> list[int]:
        """Tokens of prompt and response."""
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
        return float(sum(values)) if len(values) == len(self.response_ids) else math.nan

    def append(self, token: int, eos_ids: frozenset[int], max_new_tokens: int) -> bool:
        """Adds one token; returns whether the response has ended with it."""
        self.response_ids.append(token)
        self.has_end = token in eos_ids
        self.done = self.has_end or len(self.response_ids) >= max_new_tokens
        return self.done
