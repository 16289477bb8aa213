"""Turns that an engine wrote as what a plan is made of: checked, and scored by the policy itself.

The engine's kernels round otherwise than training does, so that its log-probs are not those of the policy; at learning rate 0
PPO's ratio would not be 1. So its tokens are read once more, packed, by the pass that training evaluates them with, which gives
log-probs and values. What is left is that the tokens were drawn from the engine's distribution μ and are taken for draws from
the policy's π; `Mismatch` says how far the two are apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.engines.engine import Engine, EngineError, Turn, make_engine
from llm_env.lm.causal_lm import CausalLM
from llm_env.lm.writer import Outlook, Written

Score = Callable[[list[list[int]], list[int]], tuple[NDArray[np.float32], NDArray[np.float32]]]
"""From texts and the place at which each one's turn begins to the turns' log π in nats and values, flat, text by text."""


@dataclass
class Mismatch:
    """How far an engine's log-probs are from the policy's, on the tokens that the engine drew.

    Attributes:
        tokens: Tokens that were compared.
        kl: Sum over them of r - 1 - log r with r = π/μ, whose mean is an estimate of KL(μ‖π) in nats a token that is never
            negative (k3 of http://joschu.net/blog/kl-approx.html).
        largest: The largest |log π - log μ|, in nats.
    """

    tokens: int = 0
    kl: float = 0.0
    largest: float = 0.0

    def add(self, engine: NDArray[np.float64], policy: NDArray[np.float32]) -> None:
        """Compares log-probs of the same tokens, in nats, shape (n,)."""
        log_ratio = policy.astype(np.float64) - engine
        self.tokens += len(log_ratio)
        self.kl += float((np.expm1(log_ratio) - log_ratio).sum())
        self.largest = max(self.largest, float(np.abs(log_ratio).max(initial=0.0)))

    def take(self) -> dict[str, float]:
        """The log's values since the last call; none where nothing was compared."""
        values = {"rollout/engine_kl": self.kl / self.tokens, "rollout/engine_gap": self.largest} if self.tokens else {}
        self.tokens, self.kl, self.largest = 0, 0.0, 0.0
        return values


class EngineWriter:
    """Writes ahead with an engine, which is made at the first use.

    Args:
        name: The engine's name.
        lm: The model that acts.
        max_length: The longest text, in tokens.
        temperature: Divides the logits.
        weights: Gives the weights as they are now.
        score: Scores turns as training does.
    """

    def __init__(
        self,
        name: str,
        lm: CausalLM,
        max_length: int,
        temperature: float,
        weights: Callable[[], Iterable[tuple[str, Tensor]]],
        score: Score,
    ) -> None:
        self.name = name
        self.lm = lm
        self.device = lm.device
        self.mismatch = Mismatch()
        self.is_stale = True
        """Whether the weights are not the engine's yet."""
        self._engine: Engine | None = None
        self._max_length = max_length
        self._temperature = temperature
        self._weights = weights
        self._score = score

    def write(self, ids: Tensor, lengths: Tensor, outlook: Outlook) -> Written:
        """Writes on as far as can be foreseen.

        Args:
            ids: Right-padded prefixes, on the CPU, shape (N, L).
            lengths: Tokens of each prefix, on the CPU, shape (N,).
            outlook: How far, and what ends a slot; one without masks, in which no slot goes on.

        Raises:
            EngineError: the engine failed, or gave what is no turn.
        """
        assert outlook.masks is None
        assert not outlook.goes_on
        slots = outlook.room.nonzero()[:, 0].tolist()
        prompts = [ids[slot, : lengths[slot]].tolist() for slot in slots]
        room = outlook.room[slots].clamp(max=outlook.steps).tolist()
        seed = int(torch.randint(2**31 - 1, ()))
        if self._engine is None:
            self._engine = make_engine(self.name, self.lm, self._max_length, len(lengths))
        if self.is_stale:
            self._engine.load_weights(self._weights())
            self.is_stale = False
        end_ids = outlook.is_end.nonzero()[:, 0].tolist()
        turns = self._engine.generate(prompts, room, end_ids, self._temperature, seed)
        check_turns(self.name, turns, room, outlook.is_end)
        texts = [prompt + turn.tokens for prompt, turn in zip(prompts, turns, strict=True)]
        log_probs, values = self._score(texts, [len(prompt) for prompt in prompts])
        if all(turn.log_probs is not None for turn in turns):
            self.mismatch.add(np.array([x for turn in turns for x in turn.log_probs or ()]), log_probs)
        return as_written(slots, turns, outlook, log_probs, values)


def check_turns(name: str, turns: Sequence[Turn], room: Sequence[int], is_end: Tensor) -> None:
    """Refuses what is no turn: nothing, too much, no tokens, an end token inside, or an end without one.

    Args:
        name: The engine's name, for the error.
        turns: What it gave.
        room: How many tokens there was room for, a turn each.
        is_end: Whether a token ends a turn, boolean, shape (V,).

    Raises:
        EngineError: the first turn that is none, and what is wrong with it.
    """
    if len(turns) != len(room):
        raise EngineError(f"engine={name!r} gave {len(turns)} turns to {len(room)} texts; it must give one to each.")
    for i, (turn, most) in enumerate(zip(turns, room, strict=True)):
        tokens = turn.tokens
        problem = ""
        if not 1 <= len(tokens) <= most:
            problem = f"{len(tokens)} tokens, where there must be 1 to {most}"
        elif (bad := next((t for t in tokens if not (isinstance(t, int) and 0 <= t < len(is_end))), None)) is not None:
            problem = f"{bad!r}, which is no token: they are 0 to {len(is_end) - 1}"
        elif (at := next((k for k, t in enumerate(tokens) if is_end[t]), None)) is not None and at + 1 < len(tokens):
            problem = f"{len(tokens) - at - 1} tokens behind the end token {tokens[at]}"
        elif at is None and len(tokens) < most:
            problem = f"{len(tokens)} tokens without an end token, though there is room for {most}"
        elif turn.log_probs is not None and len(turn.log_probs) != len(tokens):
            problem = f"{len(turn.log_probs)} log-probs for {len(tokens)} tokens"
        if problem:
            raise EngineError(f"engine={name!r} gave text {i + 1} of {len(room)} {problem}.")


def as_written(
    slots: Sequence[int],
    turns: Sequence[Turn],
    outlook: Outlook,
    log_probs: NDArray[np.float32],
    values: NDArray[np.float32],
) -> Written:
    """Turns as what a plan hands out.

    Args:
        slots: The slot of each turn.
        turns: What was written in each of them, checked.
        outlook: How far could be foreseen and what ends a turn, by which a turn that is cut is told from one that has ended.
        log_probs: Log π of their tokens in nats, flat, turn by turn.
        values: V before their tokens, as `log_probs`.
    """
    n_slots, counts = len(outlook.room), [len(turn.tokens) for turn in turns]
    steps = max(counts)
    written = Written(
        torch.zeros(steps, n_slots, dtype=torch.long),
        torch.zeros(steps, n_slots),
        torch.zeros(steps, n_slots),
        torch.zeros(steps, n_slots, dtype=torch.bool),
        torch.zeros(steps, n_slots, dtype=torch.bool),
    )
    parts = (torch.from_numpy(flat).split(counts) for flat in (log_probs, values))
    for slot, turn, count, turn_log_probs, turn_values in zip(slots, turns, counts, *parts, strict=True):
        written.actions[:count, slot] = torch.tensor(turn.tokens)
        written.log_probs[:count, slot] = turn_log_probs
        written.values[:count, slot] = turn_values
        written.acts[:count, slot] = True
        # A turn that is cut where the outlook ends goes on in the next plan.
        written.ended[count - 1, slot] = bool(outlook.is_end[turn.tokens[-1]]) or count == int(outlook.room[slot])
    return written
