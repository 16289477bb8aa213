"""Splits of records into those to train on and those to measure on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llm_env.text.prompts import RawPrompt


def split_indices(count: int, share: float, seed: int) -> tuple[list[int], list[int]]:
    """(train, held out): at least one held out."""
    held = max(1, round(share * count))
    order = np.random.default_rng(seed).permutation(count).tolist()
    return sorted(order[held:]), sorted(order[:held])


HELD_OUT_SHARE, HELD_OUT_MOST = 0.1, 256


def hold_out(prompts: Sequence[RawPrompt], seed: int) -> tuple[list[RawPrompt], list[RawPrompt]]:
    """(to train on, to measure on): a tenth is held out, at least one and at most 256 of them, both in the order given."""
    count = min(HELD_OUT_MOST, max(1, round(HELD_OUT_SHARE * len(prompts))))
    held = set(np.random.default_rng(seed).permutation(len(prompts))[:count].tolist())
    return [p for i, p in enumerate(prompts) if i not in held], [p for i, p in enumerate(prompts) if i in held]
