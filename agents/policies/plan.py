"""Planned rollouts: turns that were written ahead, handed out one token a call.

The environment is deterministic given the tokens, so a policy that meets a state need not wait for the next observation to
write on: it writes as far as the environment can foresee (`Outlook`), and keeps what it wrote as a `Plan`. stable-baselines3's
loop stays as it is: each of its calls gets one token, as long as the observation is what the plan expects; anything else drops
the plan. Weights that change drop it too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from llm_env.lm.writer import MaskRules, Outlook, Written

Step = tuple[Tensor, Tensor, Tensor]
"""Actions (N,), values (N, 1) and log-probs (N,) of one step of N slots."""


Foresee = Callable[[Tensor, Tensor], Outlook | None]
"""From ids (N, L) and lengths (N,) to what comes; None where nothing can be foreseen of these observations."""


@dataclass
class Plan:
    """What was written ahead of N slots, T steps; tensors are on the CPU.

    Attributes:
        outlook: What it was written by; its masks are those that were heeded.
        ids: The observation that the next step is for: token ids, shape (N, L).
        lengths: Their lengths, shape (N,).
        pad: The id behind a text's end in observations.
        written: Tokens, values, log-probs, and what became of the slots.
        at: Steps that were handed out.
    """

    outlook: Outlook
    ids: Tensor
    lengths: Tensor
    pad: int
    written: Written
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
        written, at = self.written, self.at
        if at == len(written.actions) or not (torch.equal(lengths, self.lengths) and torch.equal(ids, self.ids)):
            return None
        if not mask_is(allowed, self.outlook.masks, at, written.acts[at]):
            return None
        self._advance()
        return written.actions[at], written.values[at][:, None], written.log_probs[at]

    def _advance(self) -> None:
        """Appends this step's tokens to what the next observation must be."""
        acts, ended = self.written.acts[self.at], self.written.ended[self.at]
        rows = acts.nonzero()[:, 0]
        self.ids[rows, self.lengths[rows]] = self.written.actions[self.at, rows]
        self.lengths = self.lengths + acts
        # A slot that goes on is in a state that nobody foresaw; the plan has ended then.
        if not self.outlook.goes_on and ended.any():
            self.lengths[ended] = 0
            self.ids[ended] = self.pad
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
    given = allowed[acts.to(allowed.device)]
    return bool(given.all()) if rules is None else torch.equal(given, rules.after(steps)[acts].to(given.device))
