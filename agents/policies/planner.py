"""When a policy writes ahead, and who gets what it wrote."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from agents.policies.plan import Foresee, Plan, Step, mask_is
from llm_env.lm.writer import Outlook, Written

Write = Callable[[Tensor, Tensor, Outlook], Written]
"""From ids (N, L) and lengths (N,), on the CPU, and what can be foreseen, to what the policy writes."""


class Planner:
    """Hands out the steps of a plan, and makes a new one where there is none that fits.

    Args:
        write: Writes ahead.
        pad: The id behind a text's end in observations.
    """

    def __init__(self, write: Write, pad: int) -> None:
        self._write = write
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
        ids, lengths = ids.cpu(), lengths.cpu()
        if self._plan is not None and (step := self._plan.take(ids, lengths, allowed)) is not None:
            return step
        self._plan = None
        if self.foresee is None or not lengths.any():
            return None
        outlook = self.foresee(ids, lengths)
        if outlook is None or outlook.steps < 2 or not outlook.room.any():
            return None
        # An environment's masks are for policies that heed them; this one says by its argument whether it does.
        if allowed is None:
            outlook = outlook._replace(masks=None)
        if not mask_is(allowed, outlook.masks, 0, outlook.room > 0):
            return None
        self._plan = Plan(outlook, ids.clone(), lengths.clone(), self._pad, self._write(ids, lengths, outlook))
        return self._plan.take(ids, lengths, allowed)
