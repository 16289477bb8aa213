"""Planned rollouts: turns that were written ahead, handed out one token a call.

The environment is deterministic given the tokens, so a policy that meets a state need not wait for the next observation to
write on: it writes as far as the environment can foresee (`Outlook`), and keeps what it wrote as a `Plan`. stable-baselines3's
loop stays as it is: each of its calls gets one token, as long as the observation is what the plan expects; anything else drops
the plan. Weights that change drop it too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

Step = tuple[Tensor, Tensor, Tensor]
"""Actions (N,), values (N, 1) and log-probs (N,) of one step of N slots."""


class MaskRules(NamedTuple):
    """Rules of the vocabulary alone, which a policy can apply without asking the environment at each step.

    Attributes:
        table: Which tokens may be chosen, boolean, shape (2, V): in any state; in one where the turn is too short to end.
        short: Tokens after which each slot's turn may end, shape (N,).
    """

    table: Tensor
    short: Tensor

    def after(self, steps: int) -> Tensor:
        """Which tokens may be chosen after a number of further tokens, boolean, shape (N, V)."""
        return self.table[(self.short > steps).long()]


class Outlook(NamedTuple):
    """What an environment can foresee of its N slots.

    Attributes:
        steps: Steps that it can foresee at most: to the end of the rollout, or until a world's answer is due.
        room: Tokens that each slot's turn can have still, shape (N,); 0 for a slot that takes no action.
        is_end: Whether a token ends a turn, boolean, shape (V,).
        goes_on: Whether a slot whose turn has ended goes on, with a state that only the environment knows. If not, it is idle
            from then on.
        masks: Which tokens may be chosen, for policies that heed masks.
    """

    steps: int
    room: Tensor
    is_end: Tensor
    goes_on: bool
    masks: MaskRules | None = None


Foresee = Callable[[Tensor, Tensor], Outlook | None]
"""From ids (N, L) and lengths (N,) to what comes; None where nothing can be foreseen of these observations."""


@dataclass
class Plan:
    """What was written ahead of N slots, T steps.

    Attributes:
        outlook: What it was written by.
        masked: Whether the outlook's masks were applied.
        ids: The observation that the next step is for: token ids, shape (N, L).
        lengths: Their lengths, shape (N,).
        pad: The id behind a text's end in observations.
        actions: Tokens, shape (T, N); 0 where a slot takes none.
        values: V before each token, shape (T, N).
        log_probs: log π of the tokens, in nats, shape (T, N).
        acts: Whether a slot's text grows in a step, boolean, shape (T, N).
        idle: Whether a slot is idle from a step's end on, boolean, shape (T, N).
        at: Steps that were handed out.
    """

    outlook: Outlook
    masked: bool
    ids: Tensor
    lengths: Tensor
    pad: int
    actions: Tensor
    values: Tensor
    log_probs: Tensor
    acts: Tensor
    idle: Tensor
    at: int = 0

    def take(self, ids: Tensor, lengths: Tensor, allowed: Tensor | None) -> Step | None:
        """The next step, if an observation is the one that was expected.

        Args:
            ids: Right-padded token ids, shape (N, L).
            lengths: Their lengths, shape (N,).
            allowed: Which tokens may be chosen, boolean, shape (N, V); None: all.

        Returns:
            None where the plan has ended, or does not fit.
        """
        if self.at == len(self.actions) or not self._expects(ids, lengths, allowed):
            return None
        step = self.actions[self.at], self.values[self.at][:, None], self.log_probs[self.at]
        self._advance()
        return step

    def _expects(self, ids: Tensor, lengths: Tensor, allowed: Tensor | None) -> bool:
        if not (torch.equal(lengths, self.lengths) and torch.equal(ids, self.ids)):
            return False
        return mask_is(allowed, self.outlook.masks if self.masked else None, self.at, self.acts[self.at])

    def _advance(self) -> None:
        """Appends this step's tokens to what the next observation must be."""
        acts, idle = self.acts[self.at], self.idle[self.at]
        rows = acts.nonzero()[:, 0]
        self.ids[rows, self.lengths[rows]] = self.actions[self.at, rows]
        self.lengths = (self.lengths + acts).masked_fill_(idle, 0)
        if idle.any():
            self.ids[idle] = self.pad
        self.at += 1


def mask_is(allowed: Tensor | None, rules: MaskRules | None, steps: int, acts: Tensor) -> bool:
    """Whether a mask is what the rules say after a number of steps, for the slots that act.

    Args:
        allowed: The mask, boolean, shape (N, V); None: all tokens.
        rules: The rules; None: all tokens.
        steps: Tokens that were written since the rules were made.
        acts: Which slots act, boolean, shape (N,).
    """
    if allowed is None:
        return rules is None
    return bool(allowed[acts].all()) if rules is None else torch.equal(allowed[acts], rules.after(steps)[acts])
