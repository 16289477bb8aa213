"""`TokenRolloutBuffer`: a rollout as whole episodes, each prompt and each token stored once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.type_aliases import RolloutBufferSamples
from torch import Tensor

from agents.advantages import gae, whiten
from agents.carriers import DeferredRewards, SegmentScorer, scorer_of
from agents.vec_env import complete_info
from llm_env.packing import pack
from llm_env.task import TextTask
from llm_env.transition import Episode


@dataclass(eq=False)
class Segment:
    """An episode's part inside one rollout.

    Attributes:
        context: Ids before its first action: the prompt, and what was generated in an earlier rollout.
        actions, rewards, values, log_probs: One entry a step.
        episode: With deferred scoring, the episode that it is part of.
        finished: Whether the episode ended with its last step.
        slot: The environment's slot.
    """

    context: list[int]
    slot: int
    episode: Episode | None = None
    actions: list[int] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    finished: bool = False


class TokenRolloutBuffer(RolloutBuffer):
    """A drop-in for `DictRolloutBuffer` that lets stock PPO and A2C train on whole episodes.

    - Idle steps of synchronous environments are dropped.
    - Rewards that `LLMTextVecEnv` deferred are computed after collection, in a few large batches; so are values, and
      under mixed precision log-probs, that the policy asks to score again.
    - `get` groups whole segments into mini-batches of at most `batch_size` tokens; `observations` is then a
      `PackedBatch`, which `LLMActorCriticPolicy.evaluate_actions` reads in one causal pass.

    After `compute_returns_and_advantage`, `values`, `returns`, `advantages`, `log_probs`, `rewards` and `actions` are
    flat arrays, shape (n_tokens,).

    Args:
        buffer_size: Steps of each environment in a rollout.
        observation_space: Of `LLMText-v0`.
        action_space: Of `LLMText-v0`.
        device: Where mini-batches go.
        gae_lambda: λ of `agents.advantages.gae`.
        gamma: γ.
        n_envs: Number of slots.
        whiten_advantages: Shift and scale the whole rollout's advantages to mean 0, standard deviation 1. PPO's own
            `normalize_advantage` does so for each mini-batch; use one of them.

    Raises:
        TypeError: the observation space is not `LLMText-v0`'s.
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        device: torch.device | str = "auto",
        gae_lambda: float = 1,
        gamma: float = 0.99,
        n_envs: int = 1,
        whiten_advantages: bool = False,
    ) -> None:
        if not isinstance(observation_space, spaces.Dict) or set(observation_space) != {"input_ids", "length"}:
            raise TypeError(f"TokenRolloutBuffer is for LLMText-v0's observations, not for {observation_space}.")
        self.whiten_advantages = whiten_advantages
        super().__init__(buffer_size, observation_space, action_space, device, gae_lambda, gamma, n_envs)

    def reset(self) -> None:
        """Empties the buffer."""
        self.segments: list[Segment] = []
        self._open: list[Segment | None] = [None] * self.n_envs
        self._task: TextTask | None = None
        self._scorer: SegmentScorer | None = None
        self.pos = 0
        self.full = False
        self.generator_ready = False

    def add(
        self,
        obs: Any,
        action: np.ndarray,
        reward: np.ndarray,
        episode_start: np.ndarray,
        value: Tensor,
        log_prob: Tensor,
    ) -> None:
        """Adds one step of every slot; see `RolloutBuffer.add`."""
        self._scorer = scorer_of(log_prob) or self._scorer
        episodes: list[Episode | None] = [None] * self.n_envs
        if isinstance(reward, DeferredRewards):
            episodes, self._task = reward.episodes, reward.task
        lengths = np.asarray(obs["length"]).reshape(-1)
        tokens = np.asarray(action).reshape(-1)
        values = value.detach().float().cpu().numpy().reshape(-1)
        log_probs = log_prob.detach().float().cpu().numpy().reshape(-1)
        paid = np.asarray(reward, dtype=np.float32)
        for slot in range(self.n_envs):
            segment = self._open[slot]
            length = int(lengths[slot])
            if segment is not None and (length == 0 or episode_start[slot]):
                segment.finished = True
                segment = self._open[slot] = None
            if length == 0:
                continue
            if segment is None:
                segment = Segment(obs["input_ids"][slot, :length].tolist(), slot, episodes[slot])
                self._open[slot] = segment
                self.segments.append(segment)
            segment.actions.append(int(tokens[slot]))
            segment.rewards.append(float(paid[slot]))
            segment.values.append(float(values[slot]))
            segment.log_probs.append(float(log_probs[slot]))
        self.pos += 1
        self.full = self.pos == self.buffer_size

    def compute_returns_and_advantage(self, last_values: Tensor, dones: np.ndarray) -> None:
        """Redeems what was deferred, then λ-returns and advantages per segment.

        Args:
            last_values: V of the state after the last step of each slot.
            dones: Whether the last step of each slot ended an episode.

        Raises:
            RewardModelError: the reward model failed or returned something unusable.
            RuntimeError: nothing was generated in the whole rollout.
        """
        for slot, segment in enumerate(self._open):
            if segment is not None:
                segment.finished = bool(dones[slot])
        if not self.segments:
            raise RuntimeError("The rollout holds no tokens: every slot was idle. n_steps must cover a whole round.")
        self._rescore()
        self._redeem()

        segments = self.segments
        lengths = np.array([len(s.actions) for s in segments])
        inside = np.arange(lengths.max()) < lengths[:, None]

        def padded(rows: list[list[float]]) -> np.ndarray:
            table = np.zeros(inside.shape)
            table[inside] = np.concatenate([np.asarray(r, dtype=np.float64) for r in rows])
            return table

        rewards, values = padded([s.rewards for s in segments]), padded([s.values for s in segments])
        ends = np.zeros(len(segments))
        if not all(s.finished for s in segments):  # else nobody looks at the values, and they are not computed
            after = last_values.detach().float().cpu().numpy().reshape(-1)
            ends = np.array([0.0 if s.finished else after[s.slot] for s in segments])
        advantages = gae(rewards, values, lengths, ends, self.gamma, self.gae_lambda)
        self.values = values[inside].astype(np.float32)
        self.returns = (advantages + values)[inside].astype(np.float32)
        flat = advantages[inside]
        self.advantages = (whiten(flat) if self.whiten_advantages else flat).astype(np.float32)
        self.rewards = rewards[inside].astype(np.float32)
        self.log_probs = np.concatenate([s.log_probs for s in segments]).astype(np.float32)
        self.actions = np.concatenate([s.actions for s in segments]).astype(np.int64)
        self._offsets = np.concatenate([[0], np.cumsum(lengths)])

    def _rescore(self) -> None:
        """Has the policy score the segments again, where it says that what it gave while collecting is not exact."""
        scorer = self._scorer
        if scorer is None or not scorer.rescores_values:
            return
        log_probs, values = scorer.score_segments(
            [s.context + s.actions for s in self.segments], [len(s.context) for s in self.segments]
        )
        edges = np.cumsum([len(s.actions) for s in self.segments])[:-1]
        for segment, own, value in zip(self.segments, np.split(log_probs, edges), np.split(values, edges), strict=True):
            segment.values = value.tolist()
            if scorer.rescores_log_probs:
                segment.log_probs = own.tolist()

    def _redeem(self) -> None:
        """Computes the rewards that the environment deferred, and completes the episodes' info dictionaries."""
        task = self._task
        if task is None:
            return
        pairs = [(s, s.episode) for s in self.segments if s.episode is not None]
        episodes = [episode for _, episode in pairs]
        task.score_reference(episodes)
        task.score_responses(episodes)
        for segment, episode in pairs:
            start = len(segment.context) - len(episode.prompt.ids)
            end = start + len(segment.actions)
            episode.log_probs[start:end] = segment.log_probs
            segment.rewards = task.rewards(episode, start, segment.log_probs).tolist()
            if episode.done:
                complete_info(task, episode)

    def get(self, batch_size: int | None = None) -> Iterator[RolloutBufferSamples]:  # type: ignore[override]
        """Yields mini-batches of whole segments, in random order, of at most `batch_size` tokens and nearly equal size.

        Args:
            batch_size: Tokens; None: everything at once.

        Raises:
            ValueError: a segment alone is longer than `batch_size`.
        """
        assert self.full, "The buffer is read before a rollout filled it."
        lengths = np.diff(self._offsets)
        order = np.random.permutation(len(self.segments))
        for members in balanced_groups(lengths, order, batch_size):
            yield self._packed_samples(members)

    def _packed_samples(self, members: list[int]) -> RolloutBufferSamples:
        chosen = [self.segments[i] for i in members]
        packed = pack([s.context + s.actions for s in chosen], [len(s.context) for s in chosen], self.device)
        flat = np.concatenate([np.arange(self._offsets[i], self._offsets[i + 1]) for i in members])
        return RolloutBufferSamples(
            observations=packed,  # type: ignore[arg-type]  # read by LLMActorCriticPolicy alone
            actions=packed.targets,
            old_values=self._at(self.values, flat),
            old_log_prob=self._at(self.log_probs, flat),
            advantages=self._at(self.advantages, flat),
            returns=self._at(self.returns, flat),
        )

    def _at(self, array: np.ndarray, index: np.ndarray) -> Tensor:
        return torch.as_tensor(array[index], device=self.device)


def balanced_groups(lengths: np.ndarray, order: np.ndarray, batch_size: int | None) -> list[list[int]]:
    """Splits segments into the fewest groups of at most `batch_size` tokens, of nearly equal size.

    A fixed cut-off would leave a rest, whose few tokens would weigh as much as a full mini-batch's.

    Args:
        lengths: Tokens of each segment.
        order: Indices in the order in which they are dealt out, each to the group that is shortest so far.
        batch_size: In tokens; None: one group.

    Raises:
        ValueError: a segment alone is longer than `batch_size`.
    """
    if batch_size is None:
        return [[int(i) for i in order]]
    if int(lengths.max()) > batch_size:
        raise ValueError(
            f"batch_size={batch_size} tokens is less than a response of {int(lengths.max())} tokens, and responses are "
            "not torn apart. Raise batch_size to at least max_new_tokens."
        )
    n_groups = -(-int(lengths.sum()) // batch_size)
    while True:
        groups: list[list[int]] = [[] for _ in range(n_groups)]
        sizes = np.zeros(n_groups, dtype=np.int64)
        for i in order:
            shortest = int(sizes.argmin())
            groups[shortest].append(int(i))
            sizes[shortest] += lengths[i]
        if sizes.max() <= batch_size:
            return [g for g in groups if g]
        n_groups += 1
