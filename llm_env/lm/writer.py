"""Writing on in N slots at once: token after token, without a word to the host between two of them.

The loop's state is in tensors that have an entry for each row of the decoder's storage and keep their addresses; the number of
rows falls from bucket to bucket as slots end (`llm_env.lm.ragged_cache.row_bucket`), and those that are left move together.
So one step is a function of tensors whose shapes depend on the numbers of rows and columns alone, which a GPU can capture and
replay (`llm_env.lm.replay`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from llm_env.lm.decoding import CachedDecoder
from llm_env.lm.ragged_cache import row_bucket
from llm_env.lm.replay import StepRunner, graph_capture

Choose = Callable[[Tensor, Tensor | None, Tensor | None], tuple[Tensor, Tensor, Tensor]]
"""From hidden states (R, H), uniform numbers (R,) or None for the likeliest, and a mask (R, V) or None, to tokens, log π in
nats and values, each (R,)."""
LOOK_EVERY = 8
"""Steps on a GPU after which the host looks how many slots have ended, where nothing hangs on it but speed."""


class MaskRules(NamedTuple):
    """Rules of the vocabulary alone, which can be applied without asking anybody at each step.

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
    """What can be foreseen of N slots; tensors are on the CPU.

    Attributes:
        steps: Steps that can be foreseen at most, at least 1.
        room: Tokens that each slot's turn can have still, shape (N,); 0 for a slot that takes none.
        is_end: Whether a token ends a turn, boolean, shape (V,).
        goes_on: Whether a slot whose turn has ended goes on, with something that is not known yet: nothing can be written
            behind the first end. If not, it is idle from then on.
        masks: Which tokens may be chosen; None: all.
    """

    steps: int
    room: Tensor
    is_end: Tensor
    goes_on: bool
    masks: MaskRules | None = None


class Written(NamedTuple):
    """What was written in T steps, on the CPU, each of shape (T, N).

    Attributes:
        actions: The tokens; 0 where a slot took none.
        values: What `Choose` gave.
        log_probs: log π of the tokens, in nats.
        acts: Whether a slot took a token.
        ended: Whether it was its last.
    """

    actions: Tensor
    values: Tensor
    log_probs: Tensor
    acts: Tensor
    ended: Tensor


class _Desk:
    """The loop's state: tensors with an entry for each row; which slot a row belongs to, the host knows.

    Attributes:
        slots: The slot of each row on the device, the number of slots for a row that belongs to none; (rows,) of it are in use.
        at: The step under way. It has a dimension, for without one torch would ask the device for a number.
        tokens: What each row has chosen last.
        columns: The column that this token goes to; behind its prefix for a row that takes none.
        last: The step in which there is room for one token more, and no other.
        alive: Whether the row takes tokens.
        short: Tokens after which the row's turn may end (`MaskRules`).
        drawn: Uniform numbers, shape (steps, rows).
        actions, values, log_probs, acts: What is noted in each step, shape (steps, rows).
        states: The last hidden states, shape (rows, H).
    """

    def __init__(self, n_slots: int, steps: int, hidden_size: int, vocab_size: int, device: torch.device) -> None:
        n = row_bucket(n_slots) + 1  # the last one is never read, and stands for rows without a slot

        def zeros(*shape: int, dtype: torch.dtype = torch.long) -> Tensor:
            return torch.zeros(*shape, dtype=dtype, device=device)

        self.n_slots, self.steps = n_slots, steps
        self.slots, self.at = zeros(n), zeros(1)
        self.tokens, self.columns, self.last, self.short = zeros(n), zeros(n), zeros(n), zeros(n)
        self.alive, self.is_end = zeros(n, dtype=torch.bool), zeros(vocab_size, dtype=torch.bool)
        self.table = zeros(2, vocab_size, dtype=torch.bool)  # of `MaskRules`
        self.drawn = zeros(steps, n, dtype=torch.float64)
        self.actions, self.acts = zeros(steps, n), zeros(steps, n, dtype=torch.bool)
        self.values, self.log_probs = (zeros(steps, n, dtype=torch.float32) for _ in range(2))
        self.states = zeros(n, hidden_size, dtype=torch.float32)
        self._spans: list[tuple[int, Tensor]] = []  # since which step the slots are in which rows, on the device

    def seat(self, slots: Tensor, lengths: Tensor, outlook: Outlook, drawn: Tensor | None) -> None:
        """Puts slots into their rows, before the first step.

        Args:
            slots: The slot of each row, on the CPU, shape (rows,); the number of slots for a row without one.
            lengths: Tokens of each slot's prefix, shape (N,).
            outlook: What can be foreseen of the slots.
            drawn: A uniform number for each step and slot, shape (steps, N), or None.
        """
        self._spans.clear()
        rows = self._belong(0, slots)
        device = rows.device
        room = outlook.room.to(device)
        self.at.zero_()
        self.alive.zero_().index_copy_(0, rows, room > 0)
        self.last.index_copy_(0, rows, room - 1)
        # Each token moves it on by one. What fills up the rows writes where no text is.
        self.columns.zero_().index_copy_(0, rows, lengths.to(device) - (room > 0).long())
        self.is_end.copy_(outlook.is_end)
        if outlook.masks is not None:
            self.table.copy_(outlook.masks.table)
            self.short.index_copy_(0, rows, outlook.masks.short.to(device))
        if drawn is not None:
            self.drawn[: len(drawn)].index_copy_(1, rows, drawn.to(device))

    def move(self, step: int, slots: Tensor) -> None:
        """Notes that rows belong to other slots from a step on; `slots` as for `seat`, each in a row already."""
        before = torch.cat([self._spans[-1][1], torch.full_like(self.at, -1)])
        rows = before[slots.to(before.device)]
        for values in (self.tokens, self.columns, self.last, self.alive, self.short):
            values[: len(slots)] = values[rows]
        self.alive[len(slots) :] = False  # nobody's rows
        self.drawn[:, : len(slots)] = self.drawn[:, rows]
        self._belong(step, slots)

    def _belong(self, step: int, slots: Tensor) -> Tensor:
        """Notes the slot of each row; returns the row of each slot, the last one for a slot that has none, shape (N,)."""
        rows = torch.full((self.n_slots + 1,), len(self.alive) - 1)
        rows[slots] = torch.arange(len(slots))
        self.slots[: len(slots)] = slots
        self._spans.append((step, rows[:-1].to(self.at.device)))
        return self._spans[-1][1]

    def moving(self) -> list[Tensor]:
        """What a step changes."""
        noted = [self.actions, self.values, self.log_probs, self.acts]
        return [self.at, self.tokens, self.columns, self.alive, self.states, *noted]

    def addresses(self) -> tuple[int, ...]:
        """Where all of it is in memory."""
        return tuple(value.data_ptr() for value in vars(self).values() if isinstance(value, Tensor))

    def mask(self, rows: int) -> Tensor:
        """Which tokens may be chosen in each row by the rules, boolean, shape (rows, V)."""
        return self.table[(self.short[:rows] > self.at).long()]

    def alive_slots(self) -> Tensor:
        """Which slots take tokens still, boolean, on the CPU, shape (N,)."""
        return self.alive[self._spans[-1][1]].cpu()

    def written(self, steps: int) -> Written:
        """What was noted, by slot, without steps in which no slot took a token."""
        acts = self._by_slot(self.acts, steps)
        n = max(1, int(acts.any(1).sum()))
        actions, values, log_probs = (self._by_slot(side, n) for side in (self.actions, self.values, self.log_probs))
        goes_on = torch.cat([acts[1:], self.alive_slots()[None]])
        return Written(actions, values, log_probs, acts[:n], (acts & ~goes_on)[:n])

    def _by_slot(self, noted: Tensor, steps: int) -> Tensor:
        """What was noted in the first steps, (steps, rows), as (steps, N) on the CPU."""
        ends = [*(first for first, _ in self._spans[1:]), steps]
        parts = [noted[a : min(b, steps)].index_select(1, rows) for (a, rows), b in zip(self._spans, ends, strict=True)]
        return torch.cat(parts).cpu()


class Writer:
    """Writes on in the slots of a decoder.

    Args:
        decoder: Reads prefixes and tokens.
        choose: Chooses the next tokens; it looks at nothing that moves in memory.
    """

    def __init__(self, decoder: CachedDecoder, choose: Choose) -> None:
        self.decoder = decoder
        self._choose = choose
        self._desk: _Desk | None = None
        self.device = decoder.lm.device
        self.look_every = LOOK_EVERY if self.device.type == "cuda" else 1  # on a CPU nothing is to be waited for
        self.runner = StepRunner(graph_capture(self.device), decoder.lm.name)
        # A captured step finds keys and values where they were when it was captured.
        decoder.keeps_storage = self.runner.captures

    @torch.no_grad()
    def write(
        self, ids: Tensor, lengths: Tensor, outlook: Outlook, drawn: Tensor | None, mask: Tensor | None = None
    ) -> Written:
        """Writes on as far as can be foreseen.

        Args:
            ids: Right-padded prefixes, long, on the CPU, shape (N, L).
            lengths: Tokens of each prefix, long, on the CPU, shape (N,); 0 for an idle slot. Not all are 0.
            outlook: How far, what ends a slot, and which tokens may be chosen.
            drawn: A uniform number in (0, 1] for each step and slot, float64, shape (steps, N); None: the likeliest tokens.
            mask: Which tokens may be chosen in the one step that is foreseen, boolean, shape (N, V); None: see `outlook`.
        """
        decoder = self.decoder
        decoder.read(ids, lengths)
        desk, slots = self._desk_for(lengths, outlook), decoder.slots_of_rows()
        desk.seat(slots, lengths, outlook, drawn)
        rows, samples = len(slots), drawn is not None
        if mask is not None:
            mask = mask[slots.clamp(max=len(lengths) - 1)]
        elif outlook.masks is not None:
            mask = desk.mask(rows)
        self._note(desk, decoder.states_of(desk.slots[:rows]), rows, samples, mask)
        steps = self._go_on(desk, lengths, outlook, rows, samples) if outlook.steps > 1 else 1
        written = desk.written(steps)
        # Steps behind the last end have written over the states that go with the texts.
        if 1 < len(written.actions) == steps:
            decoder.wrote(written.acts[-1], written.actions[:-1], desk.states)
        return written

    def _go_on(self, desk: _Desk, lengths: Tensor, outlook: Outlook, rows: int, samples: bool) -> int:
        """Reads what was chosen and chooses what is next, as far as can be foreseen; returns the steps that there were."""
        decoder, masked, steps = self.decoder, outlook.masks is not None, 1
        growing = outlook.room > 0
        n_growing, start = int(growing.sum()), int(lengths[growing].max())
        longest = start
        # The furthest columns that can be written: by a slot that grows, and by one that waits behind its prefix.
        last, waiting = int((lengths + outlook.room).max()) - 1, int((lengths * ~growing).max())
        while steps < outlook.steps:
            # On a GPU the answer is waited for, so it is asked where something hangs on it.
            if outlook.goes_on or steps % self.look_every == 0:
                left = int(desk.alive.sum())
                if not left or (outlook.goes_on and left < n_growing):
                    break
                if left < n_growing:
                    growing = desk.alive_slots()
                    n_growing, start = left, int(lengths[growing].max())
                    if decoder.fits_fewer(left):
                        decoder.release(~growing)
                        slots = decoder.slots_of_rows()
                        desk.move(steps, slots)
                        rows = len(slots)
            column = max(min(start + steps - 1, last), waiting)
            # A slot that has just ended may be the longest: its last token is read too.
            decoder.widen(max(min(longest + steps - 1, last), waiting) + 1)
            width = decoder.columns_for(column)
            step = functools.partial(self._step, desk, rows, width, samples, masked)
            self.runner((rows, width, samples, masked), step, desk.moving())
            steps += 1
        return steps

    def _desk_for(self, lengths: Tensor, outlook: Outlook) -> _Desk:
        """A desk that is large enough, the one that there is if it can be."""
        lm, n_slots = self.decoder.lm, len(lengths)
        desk = self._desk
        if desk is None or desk.n_slots != n_slots or desk.steps < outlook.steps or desk.at.device != lm.device:
            desk = self._desk = _Desk(n_slots, outlook.steps, lm.hidden_size, lm.vocab_size, lm.device)
        if self.runner.captures:  # all that it may need, at once: a captured step cannot follow
            self.decoder.widen(int((lengths + outlook.room.clamp(max=outlook.steps)).max()))
            self.runner.expect((*desk.addresses(), *self.decoder.addresses()))
        return desk

    def _step(self, desk: _Desk, rows: int, width: int, samples: bool, masked: bool) -> None:
        """Reads the tokens that were chosen last, and chooses the next ones; every tensor of the desk keeps its address."""
        states = self.decoder.read_tokens(desk.tokens[:rows], desk.columns[:rows], width)
        desk.at.add_(1)
        self._note(desk, states, rows, samples, desk.mask(rows) if masked else None)

    def _note(self, desk: _Desk, states: Tensor, rows: int, samples: bool, mask: Tensor | None) -> None:
        """Chooses tokens by hidden states (rows, H), and notes them; what rows choose that have ended comes to nothing."""
        at, alive = desk.at, desk.alive[:rows]
        drawn = desk.drawn.index_select(0, at)[0, :rows] if samples else None
        tokens, log_probs, values = self._choose(states, drawn, mask)
        desk.states[:rows].copy_(states)
        tokens = torch.mul(tokens, alive, out=desk.tokens[:rows])
        noted = (desk.actions, desk.values, desk.log_probs, desk.acts)
        for kept, now in zip(noted, (tokens, values, log_probs, alive), strict=True):
            kept[:, :rows].index_copy_(0, at, now[None])
        desk.columns[:rows].add_(alive)
        # An end token, or the last token that there is room for.
        ended = desk.is_end.index_select(0, tokens).logical_or_(desk.last[:rows] == at)
        alive.logical_and_(ended.logical_not_())
