"""What a rollout is made of: episodes, or the parts of them that lie inside it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from agents.policies.plan import Foresee
from llm_env.episode import Episode
from llm_env.lm.packing import Scored
from llm_env.reward.reference import Reference
from llm_env.task import TextTask
from llm_env.text.prompts import Prompt


@dataclass(eq=False)  # compared by identity: a group may hold the same response twice
class Segment:
    """An episode's part inside one rollout.

    Attributes:
        context: Token ids before its first action: the prompt, and what was generated in an earlier rollout.
        slot: The environment's slot that it was generated in.
        group: The number of its prompt's group; the segments of one group share it.
        episode: The episode that it is part of, where the buffer is bound to an environment.
        start: The place of the first action in the episode's response, above 0 where the episode began in an earlier rollout.
            Without an environment nothing earlier is known.
        ids: Context, actions, and what a world said between them.
        places: The place of each action among `ids`.
        actions: Token ids, one entry a step.
        rewards: What each step was paid, in score.
        values: V of the state before each step.
        log_probs: log π of each action, in nats.
        masks: Which tokens might be chosen at each step, as bits (`llm_env.lm.sampling.pack_bits`); empty without masks.
        finished: Whether the episode ended with its last step.
    """

    context: list[int]
    slot: int
    group: int = 0
    episode: Episode | None = None
    start: int = 0
    ids: list[int] = field(init=False)
    places: list[int] = field(default_factory=list)
    actions: list[int] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    masks: list[NDArray[np.uint8]] = field(default_factory=list)
    finished: bool = False

    def __post_init__(self) -> None:
        """Begins with the context."""
        self.ids = list(self.context)

    def act(self, token: int) -> None:
        """Appends an action."""
        self.places.append(len(self.ids))
        self.ids.append(token)
        self.actions.append(token)

    @property
    def turns(self) -> list[int]:
        """The number of each action's turn, from 0: a new one begins where a world has spoken."""
        turn = 0
        turns = [turn]
        for before, place in itertools.pairwise(self.places):
            turn += place > before + 1
            turns.append(turn)
        return turns

    @property
    def ids_after(self) -> list[int]:
        """The state after its last action: what a world answered belongs to it."""
        return self.ids if self.episode is None else self.episode.ids

    @property
    def is_whole(self) -> bool:
        """Whether it holds the whole episode, from the first token of the response to the end."""
        return self.finished and self.start == 0


def masks_of(segments: Sequence[Segment]) -> list[NDArray[np.uint8]] | None:
    """Each segment's masks, shape (steps, ⌈V/8⌉); None without masks."""
    # All segments of a rollout have masks, or none.
    return [np.stack(s.masks) for s in segments] if segments[0].masks else None


class RolloutPolicy(Protocol):
    """What a bound buffer asks of a policy: to score whole segments after they were collected."""

    defer_values: bool
    """While True, values are left out (NaN) where they cost a pass of their own; the buffer has them scored later."""
    scored_by_buffer: bool
    """Whether a buffer is bound to the policy."""

    @property
    def engine(self) -> str | None:
        """The engine that writes turns ahead; None: this project's own loop."""

    def foresee_with(self, foresee: Foresee) -> None:
        """Tells the policy whom to ask what comes, so that it can write turns ahead."""

    @property
    def rescores_values(self) -> bool:
        """Whether values given while collecting are missing or not exact."""

    @property
    def rescores_log_probs(self) -> bool:
        """Whether log-probs given while collecting are not exact."""

    def score_segments(
        self, sequences: list[list[int]], scored: Sequence[Scored], masks: list[NDArray[np.uint8]] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(log π, V) of every scored token, under the masks, flat, sequence by sequence."""

    def exact_kl(
        self,
        reference: Reference,
        sequences: list[list[int]],
        scored: Sequence[Scored],
        masks: list[NDArray[np.uint8]] | None = None,
    ) -> NDArray[np.float32]:
        """KL(π‖π_ref) of the whole distributions before every scored token, flat, in nats."""

    def state_values(self, sequences: list[list[int]]) -> NDArray[np.float32]:
        """V of the state after each sequence, shape (n,)."""

    def respond(
        self, task: TextTask, prompts: Sequence[Prompt | None], seed: int, deterministic: bool = False
    ) -> list[Episode]:
        """One scored response to each prompt."""
