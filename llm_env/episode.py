"""One episode of the token MDP: a prompt, the response that grows on it, and what the models say about it. No models.

With a world (`llm_env.worlds`) the response has turns: behind each of the policy's turns stands what the world answered. The
world's tokens are part of the state and nothing else: they are no actions, so every list with an entry for each response token
has entries for the policy's tokens only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from llm_env.text.ends import TurnEnds
from llm_env.text.prompts import Prompt

ENDS = (
    "end_token",
    "stop_string",
    "response_cap",
    "world",
    "turn_cap",
    "context_full",
    "world_error",
    "world_timeout",
)
"""Why an episode ended, by name: `Episode.end`. Those from ``world`` on need a world, where the first two end turns only."""


class Span(NamedTuple):
    """Neighboring tokens of one origin.

    Attributes:
        start: The place of the first among an episode's tokens.
        end: The place behind the last.
        is_action: Whether the policy chose them; else they are the prompt's or the world's.
    """

    start: int
    end: int
    is_action: bool


@dataclass
class Turn:
    """A turn of the policy that has ended, and what the world answered.

    Attributes:
        start: Index of its first token among the response tokens.
        end: Index behind its last token among the response tokens.
        text: Its text without special tokens, which the world was given.
        reward: What the world paid for it.
        reply: The world's text, cut to the most tokens that one may have.
        reply_ids: Its tokens in the state, with those that separate turns; empty where none fitted.
    """

    start: int
    end: int
    text: str
    reward: float = 0.0
    reply: str = ""
    reply_ids: list[int] = field(default_factory=list)


@dataclass(eq=False)  # compared by identity: two episodes with the same tokens are two episodes
class Episode:
    """One prompt and the response that grows on it.

    What the policy and the frozen models say about the response is filled in when it becomes known: step by step, or
    for a whole batch of episodes after they ended (deferred scoring).

    Attributes:
        prompt: The prompt that the response continues.
        response_ids: Response tokens so far, end tokens included; the policy's, without the world's.
        log_probs: log π of each response token, in nats. Empty where the policy does not report it.
        ref_log_probs: log π_ref of each response token that is scored so far, in nats; at most as long as `response_ids`.
        exact_kl: KL(π‖π_ref) of the whole next-token distributions before each scored token, in nats. Empty unless the
            reward charges the exact KL.
        done: Whether the response has ended.
        has_end: Whether the turn ended with the last token so far by what was said (an end token, a stop string); of an ended
            response, whether it did not end at a length cap.
        end: Why it ended, a name of `ENDS`; empty while it goes on.
        response_text: The response's text without special tokens, the world's part included; set when it has ended.
        rm_score: The reward model's score R(x, y), before shift, scale and penalties, and all that the world paid; None
            until it is scored.
        part_scores: The score of each reward model by its short name, unweighted, where several are summed.
        final_score: What the last token is paid: the reward model's score shifted, scaled, clipped, less all penalties.
            What the world paid is not in it.
        info: The info dictionary that the environment returned with the last step; deferred scoring completes it.
        turns: The turns that have ended, in a world.
        world_seed: The seed that the world was reset with; None without a world.
        record: What the world was given as ``options["row"]``; None without prompts, and without a world.
        world_info: The plain values of the world's latest information.
        fault: What went wrong in the world, in a line; empty where nothing did.
        world_cut: Tokens of the world's texts that were cut off.
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
    end: str = ""
    turns: list[Turn] = field(default_factory=list)
    world_seed: int | None = None
    record: Prompt | None = None
    world_info: dict[str, Any] = field(default_factory=dict)
    fault: str = ""
    world_cut: int = 0

    @property
    def length(self) -> int:
        """Number of tokens of prompt and response, end tokens and the world's included."""
        return len(self.prompt.ids) + len(self.response_ids) + sum(len(turn.reply_ids) for turn in self.turns)

    @property
    def ids(self) -> list[int]:
        """Token ids of prompt and response, end tokens and the world's included."""
        return [*self.prompt.ids, *self.continuation]

    @property
    def continuation(self) -> list[int]:
        """Token ids behind the prompt: the policy's and the world's."""
        if not self.turns:
            return self.response_ids
        ids = [i for turn in self.turns for i in (*self.response_ids[turn.start : turn.end], *turn.reply_ids)]
        return [*ids, *self.response_ids[self.turn_start :]]

    @property
    def spans(self) -> list[Span]:
        """The parts of `ids`, in order: prompt, action, world's, action, …; none is empty."""
        spans = [Span(0, len(self.prompt.ids), is_action=False)]
        lengths = [(turn.end - turn.start, len(turn.reply_ids)) for turn in self.turns]
        for actions, reply in [*lengths, (len(self.response_ids) - self.turn_start, 0)]:
            for length, is_action in ((actions, True), (reply, False)):
                if length:
                    spans.append(Span(spans[-1].end, spans[-1].end + length, is_action))
        return spans

    @property
    def places(self) -> list[int]:
        """The place of each response token among `ids`."""
        return [place for span in self.spans if span.is_action for place in range(span.start, span.end)]

    @property
    def said(self) -> list[tuple[str, str]]:
        """What stands behind the prompt as (role, text): the policy is the assistant, and a world the user."""
        if not self.turns:
            return [("assistant", self.response_text)]
        told = [part for turn in self.turns for part in (("assistant", turn.text), ("user", turn.reply))]
        return told if told[-1][1] else told[:-1]

    @property
    def turn_start(self) -> int:
        """Index of the first token of the turn under way among the response tokens."""
        return self.turns[-1].end if self.turns else 0

    @property
    def world_return(self) -> float:
        """What the world has paid so far."""
        return float(sum(turn.reward for turn in self.turns))

    @property
    def total_score(self) -> float | None:
        """What the episode earned without the KL penalty: `final_score` and all that the world paid; None until scored."""
        return None if self.final_score is None else self.final_score + self.world_return

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

    def append(self, token: int, ends: TurnEnds, max_new_tokens: int, max_turn_tokens: int | None = None) -> bool:
        """Adds one token to the response.

        Args:
            token: The token.
            ends: What ends a response, or in a world a turn.
            max_new_tokens: Length cap of a response.
            max_turn_tokens: Length cap of a turn; None: there is none.

        Returns:
            Whether the response has ended with it, or in a world the turn.
        """
        self.response_ids.append(token)
        said = ends.end_of(self.response_ids, self.turn_start)
        self.has_end = bool(said)  # also where it is the last token that fits
        is_full = len(self.response_ids) >= max_new_tokens
        if self.world_seed is not None:
            cap = max_new_tokens if max_turn_tokens is None else max_turn_tokens
            return self.has_end or is_full or len(self.response_ids) - self.turn_start >= cap
        if self.has_end or is_full:
            self.finish(said or "response_cap")
        return self.done

    def finish(self, end: str) -> None:
        """Notes that the episode has ended, and why, by a name of `ENDS`."""
        self.done, self.end = True, end
