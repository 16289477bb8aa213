"""The rollout buffer of MaskablePPO: `TokenRolloutBuffer` that keeps each step's mask."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from sb3_contrib.common.maskable.buffers import MaskableRolloutBufferSamples

from agents.rollouts.buffer import Segment, TokenRolloutBuffer
from llm_env.lm.packing import PackedBatch
from llm_env.lm.sampling import pack_bits


class MaskableTokenRolloutBuffer(TokenRolloutBuffer):
    """`TokenRolloutBuffer` that keeps each step's mask, a bit a token."""

    def add(self, *args: Any, action_masks: np.ndarray | None = None, **kwargs: Any) -> None:
        """Adds one step of every slot, with masks of shape (n_envs, V)."""
        super().add(*args, **kwargs)
        if action_masks is None:
            return
        bits = pack_bits(np.asarray(action_masks, dtype=bool).reshape(self.n_envs, -1))
        for slot, segment in enumerate(self._open):
            if segment is not None:
                segment.masks.append(bits[slot])

    def _annotated(self, packed: PackedBatch, chosen: list[Segment]) -> PackedBatch:
        packed = super()._annotated(packed, chosen)
        if not chosen[0].masks:
            return packed
        bits = np.concatenate([np.stack(s.masks) for s in chosen])
        return dataclasses.replace(packed, masks=torch.from_numpy(bits).to(self.device))

    def get(self, batch_size: int | None = None) -> Iterator[MaskableRolloutBufferSamples]:  # type: ignore[override]
        """As `TokenRolloutBuffer.get`, with the masks' bits."""
        for samples in super().get(batch_size):
            masks = samples.observations.masks  # type: ignore[attr-defined]
            yield MaskableRolloutBufferSamples(*samples, action_masks=masks)
