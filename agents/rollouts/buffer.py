"""`TokenRolloutBuffer`: a rollout as whole episodes, each prompt and each token stored once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.type_aliases import RolloutBufferSamples
from torch import Tensor

from agents.policies.observations import check_observation_space
from agents.policies.sampled_actions import DeferredRewards, SegmentScorer, scorer_of
from agents.rollouts.advantages import Array, dr_grpo, gae, grpo, remax, returns_to_go, rloo, whiten
from agents.rollouts.minibatches import balanced_groups
from agents.rollouts.vec_env import complete_info
from llm_env.episode import Episode
from llm_env.lm.packing import PackedBatch, pack
from llm_env.task import TextTask

GROUP_ADVANTAGES = {"grpo": grpo, "dr_grpo": dr_grpo, "rloo": rloo}
ADVANTAGES = ("gae", *GROUP_ADVANTAGES, "remax", "reinforce_pp")


@dataclass(eq=False)
class Segment:
    """An episode's part inside one rollout.

    Attributes:
        context: Ids before its first action: the prompt, and what was generated in an earlier rollout.
        actions, rewards, values, log_probs: One entry a step.
        masks: The same where actions are masked: which might be chosen, as bits.
        episode: With deferred scoring, the episode that it is part of.
        finished: Whether the episode ended with its last step.
        slot: The environment's slot.
        group: Which prompt's group it is in; segments of one group have the same number.
    """

    context: list[int]
    slot: int
    group: int = 0
    episode: Episode | None = None
    actions: list[int] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    masks: list[np.ndarray] = field(default_factory=list)
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
        gae_lambda: λ of `agents.rollouts.advantages.gae`.
        gamma: γ.
        n_envs: Number of slots.
        advantages: ``gae``, which needs a critic; or ``grpo``, ``dr_grpo``, ``rloo`` (baseline: the group), ``remax``
            (baseline: the greedy response), ``reinforce_pp`` (no baseline: Hu et al. 2025, https://arxiv.org/abs/2501.03262;
            return to go, to be whitened over the rollout). These need whole episodes; see `agents.rollouts.advantages`.
        group_size: Slots that share a prompt, as the environment's `group_size`.
        kl_in_reward: False leaves the KL penalty out of the rewards, for an algorithm whose loss has it.
        kl_in_loss: Mini-batches carry `ref_log_probs`, `kl_coef` and, where the environment's `kl_estimator` is ``exact``,
            the `reference`, for a KL term in the loss.
        whiten_rewards: Divide the rollout's token rewards, KL included, by their standard deviation; the mean stays (detail
            of Ziegler et al. 2019's code; "The N Implementation Details of RLHF with PPO", Huang et al. 2023).
        whiten_advantages: Shift and scale the whole rollout's advantages to mean 0, standard deviation 1. PPO's own
            `normalize_advantage` does so for each mini-batch; use one of them.

    Raises:
        TypeError: the observation space is not `LLMText-v0`'s.
        ValueError: unknown advantages, or groups too small for them.
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
        advantages: str = "gae",
        group_size: int = 1,
        kl_in_reward: bool = True,
        kl_in_loss: bool = False,
        whiten_rewards: bool = False,
    ) -> None:
        check_observation_space("TokenRolloutBuffer", observation_space)
        if advantages not in ADVANTAGES:
            raise ValueError(f"advantages={advantages!r} is not known; use one of {', '.join(ADVANTAGES)}.")
        if advantages in GROUP_ADVANTAGES and group_size < 2:
            raise ValueError(
                f"advantages={advantages!r} compares the responses of a group: group_size must be at least 2."
            )
        if n_envs % group_size:
            raise ValueError(f"n_envs={n_envs} must be a multiple of group_size={group_size}.")
        self.whiten_advantages = whiten_advantages
        self.estimator = advantages
        self.group_size = group_size
        self.kl_in_reward = kl_in_reward
        self.kl_in_loss = kl_in_loss
        self.whiten_rewards = whiten_rewards
        self.extra_tokens = 0
        """Tokens generated so far outside the environment: ReMax's greedy responses."""
        self._parts = 0
        self._kept: list[Segment] = []
        super().__init__(buffer_size, observation_space, action_space, device, gae_lambda, gamma, n_envs)

    def reset(self) -> None:
        """Empties the buffer."""
        self.segments: list[Segment] = []
        self._open: list[Segment | None] = [None] * self.n_envs
        self._task: TextTask | None = None
        self._scorer: SegmentScorer | None = None
        self._parts += 1
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
                group = (self._parts * self.buffer_size + self.pos) * self.n_envs + slot // self.group_size
                segment = Segment(obs["input_ids"][slot, :length].tolist(), slot, group, episodes[slot])
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
        ends = np.zeros(len(self.segments))
        if not all(s.finished for s in self.segments):  # else nobody looks at the values, and they are not computed
            after = last_values.detach().float().cpu().numpy().reshape(-1)
            ends = np.array([0.0 if s.finished else after[s.slot] for s in self.segments])
        self._flatten(ends)

    def _flatten(self, ends: Array) -> None:
        """Advantages and returns of the segments, and everything as flat arrays.

        Args:
            ends: V of the state after each segment's last step, 0 where it has ended.
        """
        segments = self.segments
        lengths = np.array([len(s.actions) for s in segments])
        inside = np.arange(lengths.max()) < lengths[:, None]

        def padded(rows: list[list[float]]) -> Array:
            table = np.zeros(inside.shape)
            table[inside] = np.concatenate([np.asarray(r, dtype=np.float64) for r in rows])
            return table

        rewards, values = padded([s.rewards for s in segments]), padded([s.values for s in segments])
        if self.whiten_rewards:
            rewards /= rewards[inside].std() + 1e-8
        advantages = self._advantages(rewards, values, lengths, ends)
        self.values = values[inside].astype(np.float32)
        self.returns = (advantages + values)[inside].astype(np.float32)
        flat = advantages[inside]
        self.advantages = (whiten(flat) if self.whiten_advantages else flat).astype(np.float32)
        self.rewards = rewards[inside].astype(np.float32)
        self.log_probs = np.concatenate([s.log_probs for s in segments]).astype(np.float32)
        self.actions = np.concatenate([s.actions for s in segments]).astype(np.int64)
        self._offsets = np.concatenate([[0], np.cumsum(lengths)])

    def _advantages(self, rewards: Array, values: Array, lengths: np.ndarray, ends: Array) -> Array:
        """By the estimator chosen, shape (segments, steps)."""
        if self.estimator == "gae":
            return gae(rewards, values, lengths, ends, self.gamma, self.gae_lambda)
        if not all(
            s.finished and (s.episode is None or len(s.context) == len(s.episode.prompt.ids)) for s in self.segments
        ):
            raise ValueError(
                f"advantages={self.estimator!r} needs whole episodes in each rollout: make the environment with "
                "episodes='synchronous', and n_steps a multiple of max_new_tokens."
            )
        if self.estimator == "reinforce_pp":
            return returns_to_go(rewards, lengths, self.gamma)
        if self.estimator == "remax":
            return remax(rewards, lengths, self._greedy_scores(), self.gamma)
        scores = returns_to_go(rewards, lengths, self.gamma)[:, 0]
        of_response = GROUP_ADVANTAGES[self.estimator](scores, np.array([s.group for s in self.segments]))
        return np.where(np.arange(rewards.shape[1]) < lengths[:, None], of_response[:, None], 0.0)

    def _greedy_scores(self) -> Array:
        """What the policy's greedy response to each segment's prompt scores; one response for each prompt."""
        episodes = [s.episode for s in self.segments]
        if self._scorer is None or self._task is None or any(e is None for e in episodes):
            raise ValueError(
                "advantages='remax' needs LLMActorCriticPolicy and an environment with scoring='deferred'."
            )
        prompts = {tuple(e.prompt.ids): e.prompt for e in episodes if e is not None}
        greedy = self._scorer.greedy_episodes(self._task, list(prompts.values()))
        self.extra_tokens += sum(len(e.response_ids) for e in greedy)
        scores = dict(zip(prompts, (e.final_score for e in greedy), strict=True))
        return np.array([scores[tuple(e.prompt.ids)] for e in episodes if e is not None], dtype=np.float64)

    # ------------------------------------------------------------------------------------------- dynamic sampling
    @property
    def n_groups(self) -> int:
        """Groups in the buffer."""
        return len({s.group for s in self.segments})

    def keep_groups_with_spread(self) -> bool:
        """Puts groups whose responses earned different scores aside (section 3.2 of Yu et al. 2025).

        Returns:
            Whether there are now as many as one rollout has groups.
        """
        scores: dict[int, list[float]] = {}
        for segment in self.segments:
            score = segment.episode.final_score if segment.episode is not None else None
            scores.setdefault(segment.group, []).append(sum(segment.rewards) if score is None else score)
        with_spread = {group for group, values in scores.items() if max(values) - min(values) > 1e-8}
        self._kept += [s for s in self.segments if s.group in with_spread]
        return len({s.group for s in self._kept}) >= len(scores)

    def take_kept_groups(self) -> None:
        """Fills the buffer with the groups put aside, at most as many as a rollout has; with none, it stays as it is."""
        wanted = list(dict.fromkeys(s.group for s in self._kept))[: self.n_groups]
        kept, self._kept = [s for s in self._kept if s.group in set(wanted)], []
        if kept:
            self.segments = kept
            self._flatten(np.zeros(len(kept)))

    def _rescore(self) -> None:
        """Has the policy score the segments again, where it says that what it gave while collecting is not exact."""
        scorer = self._scorer
        if scorer is None or not scorer.rescores_values:
            return
        log_probs, values = scorer.score_segments(
            [s.context + s.actions for s in self.segments],
            [len(s.context) for s in self.segments],
            [np.stack(s.masks) for s in self.segments] if self.segments[0].masks else None,
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
        self._fill_in_exact_kl(task)
        for segment, episode in pairs:
            start = len(segment.context) - len(episode.prompt.ids)
            end = start + len(segment.actions)
            episode.log_probs[start:end] = segment.log_probs
            kl_coef = None if self.kl_in_reward else 0.0
            segment.rewards = task.rewards(episode, start, segment.log_probs, kl_coef).tolist()
            if episode.done:
                complete_info(task, episode)

    def _fill_in_exact_kl(self, task: TextTask) -> None:
        """Tells the episodes the exact KL before each token, where the reward charges it."""
        if task.settings.kl_estimator != "exact":
            return
        if self._scorer is None:
            raise ValueError("kl_estimator='exact' needs LLMActorCriticPolicy.")
        flat = self._scorer.exact_kl(
            task.reference,
            [s.context + s.actions for s in self.segments],
            [len(s.context) for s in self.segments],
            [np.stack(s.masks) for s in self.segments] if self.segments[0].masks else None,
        )
        edges = np.cumsum([len(s.actions) for s in self.segments])[:-1]
        for segment, part in zip(self.segments, np.split(flat, edges), strict=True):
            if segment.episode is not None:
                start = len(segment.context) - len(segment.episode.prompt.ids)
                segment.episode.exact_kl[start:] = part.astype(float).tolist()

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
        packed = self._annotated(packed, chosen)
        flat = np.concatenate([np.arange(self._offsets[i], self._offsets[i + 1]) for i in members])
        return RolloutBufferSamples(
            observations=packed,  # type: ignore[arg-type]  # read by LLMActorCriticPolicy alone
            actions=packed.targets,
            old_values=self._at(self.values, flat),
            old_log_prob=self._at(self.log_probs, flat),
            advantages=self._at(self.advantages, flat),
            returns=self._at(self.returns, flat),
        )

    def _annotated(self, packed: PackedBatch, chosen: list[Segment]) -> PackedBatch:
        """The batch with what else the loss or the policy needs to know of its tokens."""
        if not self.kl_in_loss:
            return packed
        known: list[float] = []
        for segment in chosen:
            if segment.episode is None:
                raise ValueError("kl_in_loss needs an environment with scoring='deferred'.")
            start = len(segment.context) - len(segment.episode.prompt.ids)
            known += segment.episode.ref_log_probs[start : start + len(segment.actions)]
        assert self._task is not None
        return replace(
            packed,
            ref_log_probs=torch.tensor(known, dtype=torch.float32, device=self.device),
            kl_coef=self._task.kl_coef,
            reference=self._task.reference if self._task.settings.kl_estimator == "exact" else None,
        )

    def _at(self, array: np.ndarray, index: np.ndarray) -> Tensor:
        return torch.as_tensor(array[index], device=self.device)
