"""Writing ahead: when a policy makes a plan, and the loop that writes it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from agents.policies.plan import Foresee, Outlook, Plan, Step, mask_is

StepFunction = Callable[[Tensor, Tensor, Tensor | None], Step]
"""From ids (N, L), lengths (N,) and a mask (N, V) or None to sampled actions, values and log-probs."""


class Planner:
    """Hands out the steps of a plan, and makes a new one where there is none that fits.

    Args:
        step: Samples one step of all slots; without gradients.
        pad: The id behind a text's end in observations.
    """

    def __init__(self, step: StepFunction, pad: int) -> None:
        self._step = step
        self._pad = pad
        self._plan: Plan | None = None
        self.foresee: Foresee | None = None
        """What comes, as the environment sees it; None: nobody is bound who could say."""

    def drop(self) -> None:
        """Forgets what was written ahead; to be called whenever the weights change."""
        self._plan = None

    def next(self, ids: Tensor, lengths: Tensor, allowed: Tensor | None) -> Step | None:
        """The next step of all slots.

        Args:
            ids: Right-padded token ids, shape (N, L).
            lengths: Their lengths, shape (N,).
            allowed: Which tokens may be chosen, boolean, shape (N, V); None: all.

        Returns:
            None where nothing can be planned: the caller samples this step by itself.
        """
        if self._plan is not None and (step := self._plan.take(ids, lengths, allowed)) is not None:
            return step
        self._plan = None
        if self.foresee is None or not lengths.any():
            return None
        outlook = self.foresee(ids, lengths)
        if outlook is None or outlook.steps < 2 or not outlook.room.any():
            return None
        # An environment's masks are for policies that heed them; this one says by its argument whether it does.
        acts = outlook.room > 0
        masked = allowed is not None and outlook.masks is not None
        if not mask_is(allowed, outlook.masks if masked else None, 0, acts):
            return None
        self._plan = self._write(ids, lengths, outlook, masked)
        return self._plan.take(ids, lengths, allowed)

    def _write(self, ids: Tensor, lengths: Tensor, outlook: Outlook, masked: bool) -> Plan:
        """Samples step after step, as the environment would have it do."""
        columns: list[tuple[Tensor, ...]] = []
        written, grown = ids.clone(), lengths.clone()
        rules = outlook.masks if masked else None
        for t in range(outlook.steps):
            acts = (outlook.room > t) & (grown > 0)
            actions, values, log_probs = self._step(written, grown, None if rules is None else rules.after(t))
            actions = actions.masked_fill(~acts, 0)
            # The last token of a turn: an end token, or the last one that it has room for.
            ended = acts & (outlook.is_end[actions] | (outlook.room == t + 1))
            idle = torch.zeros_like(ended) if outlook.goes_on else ended
            columns.append((actions, values[:, 0], log_probs, acts, idle))
            rows = acts.nonzero()[:, 0]
            written[rows, grown[rows]] = actions[rows]
            grown = (grown + acts).masked_fill_(idle, 0)
            # Where a slot goes on, only the environment knows with what; where none does, there is nothing left to write.
            if ended.any() and (outlook.goes_on or not (grown > 0).any()):
                break
        actions, values, log_probs, acts, idle = (torch.stack(side) for side in zip(*columns, strict=True))
        return Plan(outlook, masked, ids.clone(), lengths.clone(), self._pad, actions, values, log_probs, acts, idle)
