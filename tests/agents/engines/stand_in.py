"""An engine whose turns a test decides on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
import torch

from agents.engines.engine import ENGINES, Turn
from llm_env.lm.causal_lm import CausalLM

Write = Callable[[Sequence[list[int]], Sequence[int], Sequence[int], int], list[Turn]]
"""From prompts, room, end tokens and seed to turns."""


class StandIn:
    """Writes by a function; keeps what it was given and what it gave."""

    write: Write
    made: list[StandIn]

    def __init__(self, lm: CausalLM, max_length: int, slots: int) -> None:
        self.arguments = (lm, max_length, slots)
        self.loaded: list[dict[str, torch.Tensor]] = []
        self.calls: list[dict[str, Any]] = []
        self.given: list[list[Turn]] = []
        type(self).made.append(self)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        self.loaded.append({name: tensor.detach().clone() for name, tensor in weights})

    def generate(
        self, prompts: Sequence[list[int]], room: Sequence[int], end_ids: Sequence[int], temperature: float, seed: int
    ) -> list[Turn]:
        self.calls.append({"prompts": prompts, "room": room, "end_ids": end_ids, "temperature": temperature})
        self.given.append(type(self).write(prompts, room, end_ids, seed))
        return self.given[-1]


def any_tokens(prompts: Sequence[list[int]], room: Sequence[int], end_ids: Sequence[int], seed: int) -> list[Turn]:
    """Turns of all lengths, of tokens that no model would choose; every other one ends with an end token."""
    rng = torch.Generator().manual_seed(seed)
    turns = []
    for i, most in enumerate(room):
        tokens = torch.randint(300, 1000, (most,), generator=rng).tolist()
        if i % 2:
            length = int(torch.randint(1, most + 1, (), generator=rng))
            tokens = [*tokens[: length - 1], end_ids[0]]
        turns.append(Turn(tokens))
    return turns


def stand_in(monkeypatch: pytest.MonkeyPatch, write: Write = any_tokens) -> type[StandIn]:
    """Has ``engine="stand_in"`` write by a function; gives the class, whose ``made`` has the engines."""
    monkeypatch.setattr(StandIn, "write", staticmethod(write), raising=False)
    monkeypatch.setattr(StandIn, "made", [], raising=False)
    monkeypatch.setitem(ENGINES, "stand_in", f"{__name__}:StandIn")
    return StandIn


def assert_near(mismatch: dict[str, float], half: bool) -> None:
    """What a real engine's log-probs may differ by from the policy's: rounding, of bf16 weights where `half`."""
    assert 0 < mismatch["rollout/engine_kl"] < (1e-3 if half else 1e-9)
    assert mismatch["rollout/engine_gap"] < (0.3 if half else 1e-4)
